"""FORMAT.md, the JSON schema and the code say the same."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

import schedsearch.schedule
from schedsearch.schedule import NUMBER_FORMATS, dumps, loads
from schedsearch.schedule import _vocabulary as words
from schedsearch.schedule._schema import SCHEMA_FILE, schema, schema_text

FOLDER = Path(schedsearch.schedule.__file__).parent
SPEC = (FOLDER / "FORMAT.md").read_text(encoding="utf-8")
FLAT = " ".join(SPEC.split())


def test_every_rule_is_cited_in_the_code_and_every_citation_is_a_rule():
    stated = set(re.findall(r"^\*\*(R\d+)\.", SPEC, re.MULTILINE))
    cited = {rule for path in FOLDER.glob("*.py") for rule in re.findall(r"\bR\d+\b", path.read_text(encoding="utf-8"))}
    assert stated == cited
    assert sorted(stated, key=lambda rule: int(rule[1:])) == [f"R{i}" for i in range(1, len(stated) + 1)]


def test_every_rule_is_tested():
    tests = " ".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    stated = set(re.findall(r"^\*\*(R\d+)\.", SPEC, re.MULTILINE))
    assert stated - set(re.findall(r"\bR\d+\b", tests)) == set()


def test_what_tests_quote_is_in_the_specification():
    quoting = re.compile(r'"""R\d+(?:, R\d+)*: "(.+?)"\.?"""', re.DOTALL)
    quotes = [
        " ".join(quote.split())
        for path in Path(__file__).parent.glob("test_*.py")
        for quote in quoting.findall(path.read_text(encoding="utf-8"))
    ]
    assert len(quotes) >= 6
    assert [quote for quote in quotes if quote not in FLAT] == []


LIMITS = {
    "MAX_FILE_BYTES": ("R1", "({:,} bytes)"),
    "MAX_NESTING": ("R1", "nest deeper than {:,};"),
    "MAX_ITEMS": ("R1", "number more than {:,},"),
    "MAX_INT_DIGITS": ("R2", "whole numbers of more than {:,} characters"),
    "MAX_TEXT": ("R5", "at most {:,} characters long"),
    "MAX_NAME": ("R5", "names at most {:,}."),
    "MAX_STEPS": ("R7", "1 to {:,} steps"),
    "MAX_ORDER": ("R8", "`order`: 1 to {:,};"),
    "MAX_ROWS": ("R9", "At most {:,} rows"),
    "MAX_OP_CHARS": ("R9", "and {:,} characters in all"),
    "MAX_RULES": ("R13", "At most {:,} rules"),
    "MAX_STARS": ("R13", "at most {:,} `*`"),
    "MAX_LOW_RANK": ("R13", "`rank` is 0 to {:,}."),
    "MAX_PRUNED": ("R14", "At most {:,} module names"),
    "MAX_TENSORS": ("R15", "names 1 to {:,} tensors"),
    "MAX_SIDE_BYTES": ("R15", "({:,} bytes)"),
    "MAX_RANK": ("R15", "at most {:,} dimensions"),
    "MAX_DIMENSION": ("R15", "dimensions of 0 to {:,};"),
    "MAX_PIXELS": ("R16", "1 to {:,} pixels"),
    "MAX_BATCH": ("R16", "`batch` is 1 to {:,} "),
    "MAX_ADAPTERS": ("R16", "at most {:,} names"),
    "MAX_MEASURED": ("R17", "At most {:,} records"),
    "MAX_PARENTS": ("R18", "at most {:,} ids"),
    "MAX_SCHEDULES": ("R20", "1 to {:,} records"),
}
"""Limit -> the rule that owns it and the words in which it states it."""


def paragraph(rule: str) -> str:
    found = re.search(rf"^\*\*{rule}\. .+?(?=\n\n)", SPEC, re.MULTILINE | re.DOTALL)
    assert found is not None, rule
    return " ".join(found[0].split())


@pytest.mark.parametrize("limit", LIMITS)
def test_every_limit_is_stated_by_its_rule(limit):
    rule, phrase = LIMITS[limit]
    assert phrase.format(getattr(words, limit)) in paragraph(rule)


def test_no_limit_is_left_out():
    named = {name for name in vars(words) if name.startswith("MAX_")}
    assert named - set(LIMITS) == {"MAX_COUNT"}
    assert words.MAX_COUNT == 2**63 - 1
    assert "within 64 signed bits" in paragraph("R18")


LISTS = (
    NUMBER_FORMATS,
    words.SCALES,
    words.FAMILIES,
    words.PREDICTIONS,
    words.CORRECTORS,
    words.ESTIMATES,
    words.TENSOR_DTYPES,
    tuple(words.OPS),
)
TENSOR = {"name": "a", "shape": [1], "dtype": "F32", "role": ""}


@pytest.mark.parametrize("names", LISTS)
def test_every_word_of_the_closed_lists_is_stated(names):
    assert [name for name in names if f"`{name}`" not in SPEC] == []


class TestSchema:
    def test_it_is_current(self):
        assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), "run: python -m schedsearch.schedule._schema"

    def test_it_is_a_schema(self):
        jsonschema.Draft202012Validator.check_schema(schema())

    def test_it_accepts_what_the_writer_writes(self, plain, full):
        validator = jsonschema.Draft202012Validator(schema())
        for schedule in (plain, full):
            validator.validate(json.loads(dumps(schedule)))

    @pytest.mark.parametrize(
        ("part", "value"),
        [
            ("extra", 1),
            ("version", "2.0"),
            ("ops", {"model": "CCSC"}),
            ("ops", {"blocks.1": "RCCC"}),
            ("ops", {"a..b": "CCRC"}),
            ("guidance", [None, 1, 1, 1]),
            ("pruned", ["a", "a"]),
            ("steps", {"sigma": [1.0]}),
            ("precision", [{"pattern": "*", "weight": "int7", "activation": "bf16"}]),
            ("precision", [{"pattern": "*", "weight": "int8", "activation": "bf16", "scales": "group"}]),
            ("precision", [{"pattern": "*", "weight": "int8", "activation": "bf16", "rank": -1}]),
            ("tables", {"sha256": "c" * 64, "tensors": []}),
            ("tables", {"file": "a.safetensors", "sha256": "c" * 64, "tensors": [TENSOR]}),
            ("tables", {"data": None, "sha256": "c" * 64, "tensors": [TENSOR]}),
        ],
    )
    def test_it_refuses_what_the_reader_refuses(self, plain, part, value):
        document = {**json.loads(dumps(plain)), part: value}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(schema()).validate(document)
        with pytest.raises(ValueError, match=r"found "):
            loads(json.dumps(document))


def test_specification_and_schema_are_package_data():
    for name in ("FORMAT.md", "schema-v1.json"):
        assert files("schedsearch.schedule").joinpath(name).is_file()


def test_the_example_of_the_specification_is_read():
    block = re.search(r"```json\n(.+?)```", SPEC, re.DOTALL)
    assert block is not None
    text = re.sub(r'"id": "sha256:\.\.\.",', "", block[1])
    text = re.sub(r'"(config|blocks|sha256)": "\.\.\."', lambda m: f'"{m[1]}": "{"0" * 64}"', text)
    schedule = loads(text)
    assert schedule.row("transformer_blocks.3.attn") == "CCRS"
    assert schedule.guidance == (3.5, 3.5, None, None)
