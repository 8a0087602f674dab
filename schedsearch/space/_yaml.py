"""YAML read under suspicion: bounded, without aliases and double keys, every fault one short sentence.

Space files and the cards of model folders come through here; both may be somebody else's. This module does not know
what they say.
"""

from __future__ import annotations

from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from schedsearch.errors import SpaceError, UsageError

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 256 * 1024
_MAX_SHOWN = 60
_MAX_PATH = 120
_MAX_DIGITS = 40


def shown(value: object) -> str:
    """``value`` for an error: as Python writes it, at most 60 characters of it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or a deep list
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def shown_key(key: object) -> str:
    """``key`` in a dotted path: plain where it is a plain word, else as `shown`."""
    return key if isinstance(key, str) and len(key) <= _MAX_SHOWN and key.isidentifier() else shown(key)


def read_yaml(file: Path | Traversable, where: str, error: type[SpaceError | UsageError]) -> object:
    """The plain Python value in a YAML file of at most 256 KiB.

    Args:
        file: what to read.
        where: how messages name it.
        error: what to raise.

    Raises:
        SpaceError, UsageError: whichever ``error`` is, if the file cannot be read, is not one UTF-8 YAML document, is
            too large or too deep, or has aliases, double keys or values that mean nothing (such as a 99th of May).
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as fault:
        raise error(f"{where}: cannot be read ({fault.strerror or fault}).") from None
    if len(data) > MAX_BYTES:
        raise error(f"{where}: found more than {MAX_BYTES} bytes, expected at most that.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise error(f"{where}: found bytes that are not UTF-8 ({fault.reason}), expected a YAML text file.") from None
    return _parsed(text, where, error)


def _parsed(text: str, where: str, error: type[SpaceError | UsageError]) -> object:
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        document = loader.get_single_node()
        if document is None:
            return None
        _Walk(loader, where, error).visit(document, "")
        value: object = loader.construct_document(document)
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        problem = " ".join(str(getattr(fault, "problem", None) or "a fault").split())[:100]
        raise error(f"{where}{line}: found invalid YAML ({problem}), expected a valid file; correct it.") from None
    except RecursionError:
        raise error(f"{where}: found YAML nested too deeply, expected a few levels; write it flat.") from None
    return value


class _Walk:
    """Refuses what makes a small file a huge value, keys that would hide one another, and values that mean nothing."""

    def __init__(self, loader: yaml.SafeLoader, where: str, error: type[SpaceError | UsageError]) -> None:
        self._loader = loader
        self._where = where
        self._error = error
        self._seen: set[int] = set()

    def visit(self, node: yaml.Node, path: str) -> None:
        """Check ``node`` and all inside it."""
        import yaml

        if id(node) in self._seen:
            self._fail(path, "a YAML alias, expected the value itself; write it out")
        self._seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            self._visit_mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for i, child in enumerate(node.value):
                self.visit(child, f"{path}[{i}]")
        elif node.tag.endswith((":int", ":float")) and len(node.value) > _MAX_DIGITS:
            self._fail(path, f"a number of {len(node.value)} characters, expected at most {_MAX_DIGITS}; shorten it")
        try:
            self._loader.construct_object(node, deep=True)  # kept by the loader, so nothing is made twice
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as fault:  # noqa: BLE001 -- PyYAML lets through whatever its converters raise
            reason = " ".join(str(fault).split())[:_MAX_SHOWN]
            self._fail(path, f"a value that cannot be read ({reason}), expected a valid one; put text in quotes")

    def _visit_mapping(self, node: yaml.MappingNode, path: str) -> None:
        import yaml

        keys: set[str] = set()
        for key, child in node.value:
            plain = key.value if isinstance(key, yaml.ScalarNode) else "?"
            here = f"{path}.{shown_key(plain)}" if path else shown_key(plain)
            if plain in keys:
                self._fail(here, "the key twice, expected it once; remove one")
            if isinstance(key, yaml.ScalarNode):
                keys.add(plain)
            self.visit(key, here)
            self.visit(child, here)

    def _fail(self, path: str, fault: str) -> NoReturn:
        at = f"{path}: " if len(path) <= _MAX_PATH else f"...{path[-_MAX_PATH:]}: "
        raise self._error(f"{self._where}: {at if path else ''}found {fault}.")
