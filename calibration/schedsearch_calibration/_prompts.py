"""Prompt sets: the shipped ones by name, a user's own from a file.

A set is known by the hash of its prompts, so that a study can say which prompts its numbers come from. This module does
not know how a set was chosen; `schedsearch_calibration.choose` does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from schedsearch.errors import UsageError

_FOLDER = Path(__file__).resolve().parent / "prompts"
_MAX_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """Prompts in a fixed order.

    Attributes:
        name: the shipped set's name, or the file's stem.
        prompts: at least one prompt, none empty, no two equal, each on one line.
        sha256: hex digest of the prompts (see `digest`).
    """

    name: str
    prompts: tuple[str, ...]
    sha256: str


def digest(prompts: Sequence[str]) -> str:
    """Return the hex SHA-256 of the prompts: each as UTF-8, ended by a newline.

    >>> digest(["red apple, blue background"])[:12]
    '82eb8be3c83c'
    """
    return hashlib.sha256("".join(f"{prompt}\n" for prompt in prompts).encode()).hexdigest()


@cache
def _index() -> dict[str, dict[str, object]]:
    sets: dict[str, dict[str, object]] = json.loads((_FOLDER / "index.json").read_text(encoding="utf-8"))
    return sets


def prompt_set_names() -> tuple[str, ...]:
    """Return the names of the shipped sets, in the order of ``prompts/index.json``."""
    return tuple(_index())


def prompt_set(name: str) -> PromptSet:
    """Return the shipped set called ``name``.

    Raises:
        UsageError: there is no such set, or its file is not the one the index records.
    """
    entry = _index().get(name)
    if entry is None:
        raise UsageError(
            f"prompts: found {name!r}, expected one of {', '.join(prompt_set_names())}. "
            "To use prompts of your own, give the path of a .txt or .jsonl file."
        )
    found = read_prompts(_FOLDER / f"{name}.jsonl")
    if found.sha256 != entry["sha256"]:
        raise UsageError(
            f"prompts/{name}.jsonl: found prompts with SHA-256 {found.sha256}, expected {entry['sha256']} as in "
            "prompts/index.json. The installed file was changed: reinstall schedsearch, or use a file of your own."
        )
    return found


def read_prompts(path: Path | str) -> PromptSet:
    """Read prompts from a file.

    ``.txt`` holds one prompt per line; ``.jsonl`` holds one JSON object per line with the key ``prompt`` (other keys
    are left alone). Blank lines are skipped; a prompt's outer white space is removed.

    Raises:
        UsageError: the file is missing, is not UTF-8 text of one of the two kinds, is over 64 MiB, holds no prompt,
            repeats a prompt, or has a line that gives none or one that is not a line of Unicode text.
    """
    path = Path(path)
    lines = _lines(path)
    read = _from_json if path.suffix == ".jsonl" else str.strip
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt = read(line)
        except ValueError as error:
            raise UsageError(f"{path}:{number}: {error}") from None
        if prompt in seen:
            raise UsageError(f"{path}:{number}: found the prompt of line {seen[prompt]} again. Remove one of the two.")
        seen[prompt] = number
    if not seen:
        raise UsageError(f"{path}: found no prompts, expected at least one. Write one prompt per line.")
    return PromptSet(name=path.stem, prompts=tuple(seen), sha256=digest(tuple(seen)))


def _lines(path: Path) -> list[str]:
    if path.suffix not in (".txt", ".jsonl"):
        raise UsageError(
            f"{path}: found a name ending in {path.suffix!r}, expected .txt (one prompt per line) or .jsonl "
            '(one {"prompt": ...} per line).'
        )
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path}: found {path.stat().st_size} bytes, expected at most 64 MiB of prompts.")
        # Not splitlines(): a prompt may hold a line separator that only Unicode knows.
        return path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file. Give the path of a .txt or .jsonl file with prompts.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8 text.") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _from_json(line: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError('found text that is not JSON, expected an object such as {"prompt": "a red apple"}.') from None
    prompt = record.get("prompt") if isinstance(record, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError('found no text under "prompt", expected an object such as {"prompt": "a red apple"}.')
    prompt = prompt.strip()
    if "\n" in prompt or "\r" in prompt:
        raise ValueError("found a line break inside the prompt, expected one line. Write a space instead.")
    if any("\ud800" <= char <= "\udfff" for char in prompt):
        raise ValueError("found half of a surrogate pair (\\ud800 to \\udfff), expected Unicode text. Remove it.")
    return prompt
