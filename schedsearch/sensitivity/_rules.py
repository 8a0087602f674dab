"""An assignment as precision rules: few patterns, the exceptions first, because the first match wins."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from schedsearch.schedule import PrecisionRule
from schedsearch.sensitivity._records import Choice

_NUMBER = re.compile(r"\.(\d+)(?=\.|$)")
OUTSIDE = "outside the blocks"


def operation_of(name: str) -> str:
    """Return the kind of a layer: its name with a star for the number of its block.

    >>> operation_of("transformer_blocks.3.attn.to_out.0"), operation_of("proj_out")
    ('transformer_blocks.*.attn.to_out.0', 'proj_out')
    """
    return _NUMBER.sub(".*", name, count=1) if _in_block(name) else name


def block_of(name: str) -> str:
    """Return the block a layer is in, or `OUTSIDE`.

    >>> block_of("transformer_blocks.3.attn.to_q"), block_of("x_embedder")
    ('transformer_blocks.3', 'outside the blocks')
    """
    return ".".join(name.split(".")[:2]) if _in_block(name) else OUTSIDE


def _in_block(name: str) -> bool:
    parts = name.split(".")
    return len(parts) > 2 and parts[1].isdigit()


def compact_rules(picks: Iterable[tuple[str, str]], choices: Mapping[str, Choice]) -> tuple[PrecisionRule, ...]:
    """Return rules that give each layer the format of its word, and no other.

    From the last to the first: one rule for all layers, one for every kind of layer that mostly has another format, and
    one for the exceptions of each kind and format, their numbers in brackets.

    Args:
        picks: layer and word, for all linear layers of the denoiser.
        choices: formats by word.
    """
    words = dict(picks)
    everywhere = _most_common(words.values())
    kinds: dict[str, list[str]] = {}
    for name in words:
        kinds.setdefault(operation_of(name), []).append(name)
    exceptions: list[tuple[str, str]] = []
    usual: list[tuple[str, str]] = []
    for kind, names in kinds.items():
        word = _most_common(words[name] for name in names)
        # One rule for the kind and one for each exception, or the same beside the rule for everything.
        if _n_patterns(names, words, but=everywhere) <= 1 + _n_patterns(names, words, but=word):
            word = everywhere
        elif word != everywhere:
            usual.append((kind, word))
        for other in dict.fromkeys(words[name] for name in names if words[name] != word):
            exceptions += [(p, other) for p in _patterns([name for name in names if words[name] == other])]
    found = [*exceptions, *usual, ("*", everywhere)]
    rules = tuple(choices[word].rule(pattern) for pattern, word in found)
    return rules if _agrees(found, words) else tuple(choices[word].rule(name) for name, word in words.items())


def _most_common(words: Iterable[str]) -> str:
    return Counter(words).most_common(1)[0][0]


def _n_patterns(names: Sequence[str], words: Mapping[str, str], *, but: str) -> int:
    others = dict.fromkeys(words[name] for name in names if words[name] != but)
    return sum(len(_patterns([name for name in names if words[name] == other])) for other in others)


def _patterns(names: Sequence[str]) -> list[str]:
    """Patterns for layers of one kind; numbers that differ in the last digit share one."""
    stems: dict[tuple[str, str], list[str]] = {}
    for name in names:
        number = _NUMBER.search(name)
        if number is None or not _in_block(name):
            stems[name, ""] = []
            continue
        digits = number.group(1)
        before, after = name[: number.start() + len(digits)], name[number.end() :]
        stems.setdefault((before, after), []).append(digits[-1])
    return [f"{before}{_digits(digits)}{after}" if digits else before for (before, after), digits in stems.items()]


def _digits(digits: Sequence[str]) -> str:
    if len(digits) == 1:
        return digits[0]
    return f"[{''.join(sorted(digits))}]"


def _agrees(found: Sequence[tuple[str, str]], words: Mapping[str, str]) -> bool:
    return all(
        next(word for pattern, word in found if fnmatchcase(name, pattern)) == wanted for name, wanted in words.items()
    )
