"""Short words for the formats of a precision rule: ``int8``, ``int4/bf16@tensor+32``.

Tables, space files and the command line write formats so. This module does not know layers.
"""

from __future__ import annotations

import re

from schedsearch.schedule._parts import PrecisionRule
from schedsearch.schedule._vocabulary import NUMBER_FORMATS

_WORD = re.compile(r"([a-z0-9_]+)(?:/([a-z0-9_]+))?(?:@(row|tensor))?(?:\+([1-9]\d{0,4}))?")
_BASE = "base"
_FOR_WEIGHTS_ONLY = "nf4"


def format_word(weight: str, activation: str, scales: str = "default", rank: int = 0) -> str:
    """The word for a precision rule's formats.

    >>> format_word("int8", "int8"), format_word("int4", "bf16", "tensor", 32)
    ('int8', 'int4/bf16@tensor+32')
    """
    both = weight if weight == activation else f"{weight}/{activation}"
    return both + (f"@{scales}" if scales != "default" else "") + (f"+{rank}" if rank else "")


def rule_word(rule: PrecisionRule) -> str:
    """The word for the formats of ``rule``."""
    return format_word(rule.weight, rule.activation, rule.scales, rule.rank)


def rule_of_word(text: str, *, base: str) -> PrecisionRule | None:
    """The rule, matching every layer, that ``text`` is the word of; ``None`` if it is no such word.

    Args:
        text: ``WEIGHT[/ACTIVATION][@SCALES][+RANK]``; without an activation it is the weight's format, or ``base`` for
            a format that only weights can have. The activation ``base`` is the denoiser's own dtype.
        base: word of that dtype.

    >>> rule_of_word("int4/base+16", base="bf16").activation
    'bf16'
    """
    match = _WORD.fullmatch(text)
    if match is None:
        return None
    weight, activation = match[1], match[2] or match[1]
    if match[2] == _BASE or (match[2] is None and weight == _FOR_WEIGHTS_ONLY):
        activation = base
    if weight not in NUMBER_FORMATS or activation not in NUMBER_FORMATS or activation == _FOR_WEIGHTS_ONLY:
        return None
    return PrecisionRule(
        pattern="*", weight=weight, activation=activation, scales=match[3] or "default", rank=int(match[4] or 0)
    )
