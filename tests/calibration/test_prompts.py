"""Prompt sets: the shipped ones are what the index says, a user's file is read or refused with a reason."""

from __future__ import annotations

import hashlib
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

import schedsearch_calibration
from schedsearch.errors import UsageError
from schedsearch_calibration import (
    _prompts,
    bundled_path,
    digest,
    flux_mini_path,
    prompt_set,
    prompt_set_names,
    read_prompts,
)

SIZES = {"flux-mini-calibration": 64, "flux-mini-held-out": 64, "general-calibration": 32, "general-held-out": 32}


def test_the_index_names_exactly_the_shipped_files():
    folder = flux_mini_path().parents[1] / "prompts"
    assert set(prompt_set_names()) == set(SIZES) == {path.stem for path in folder.glob("*.jsonl")}


@pytest.mark.parametrize("name", SIZES)
def test_a_shipped_set_has_its_size_and_its_recorded_hash(name):
    found = prompt_set(name)
    recorded = json.loads((flux_mini_path().parents[1] / "prompts" / "index.json").read_text("utf-8"))[name]
    assert found.name == name
    assert len(found.prompts) == SIZES[name] == recorded["size"]
    expected = hashlib.sha256("\n".join([*found.prompts, ""]).encode()).hexdigest()
    assert found.sha256 == expected == recorded["sha256"]


@pytest.mark.parametrize("family", ["flux-mini", "general"])
def test_calibration_and_held_out_share_no_prompt(family):
    calibration, held_out = (prompt_set(f"{family}-{part}").prompts for part in ("calibration", "held-out"))
    assert not set(calibration) & set(held_out)


def test_no_word_of_the_flux_mini_prompts_is_unknown_to_its_tokenizer():
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(flux_mini_path() / "tokenizer" / "tokenizer.json"))
    unknown = words.token_to_id("<unk>")
    for name in ("flux-mini-calibration", "flux-mini-held-out"):
        for prompt in prompt_set(name).prompts:
            ids = words.encode(prompt).ids
            assert unknown not in ids, prompt
            assert len(ids) <= 16, prompt


def test_a_bundled_model_is_found_by_its_name(tmp_path, monkeypatch):
    assert bundled_path("flux-mini") == flux_mini_path()
    with pytest.raises(UsageError, match=r"bundled: found 'flux-maxi', expected one of flux-mini, which ship with"):
        bundled_path("flux-maxi")
    with pytest.raises(UsageError, match=r"found '\.\./prompts'"):
        bundled_path("../prompts")
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "model_index.json").write_text("{}")
    monkeypatch.setattr(schedsearch_calibration, "_MODELS", tmp_path)
    assert bundled_path("another") == tmp_path / "another"


def test_a_whole_surrogate_pair_is_one_character(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "\\ud83d\\ude00"}\n', "utf-8")
    assert read_prompts(tmp_path / "a.jsonl").prompts == ("\N{GRINNING FACE}",)


def test_an_unknown_set_is_an_error_with_the_names():
    with pytest.raises(UsageError, match=r"found 'flux', expected one of flux-mini-calibration, .*general-held-out\."):
        prompt_set("flux")


def test_a_set_that_was_changed_after_installation_is_refused(tmp_path, monkeypatch):
    (tmp_path / "general-held-out.jsonl").write_text('{"prompt": "another"}\n', encoding="utf-8")
    monkeypatch.setattr(_prompts, "_FOLDER", tmp_path)
    with pytest.raises(UsageError, match=r"general-held-out.jsonl: found prompts with SHA-256 .* reinstall"):
        prompt_set("general-held-out")


PROMPTS = st.lists(
    st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from('"\\'), min_size=1).filter(
        lambda text: text.strip() == text
    ),
    min_size=1,
    unique=True,
)


@given(PROMPTS)
def test_both_kinds_of_file_give_the_same_set(tmp_path_factory, prompts):
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "a.txt").write_text("\n\n".join(prompts), encoding="utf-8", newline="")
    (folder / "a.jsonl").write_text("".join(json.dumps({"prompt": p, "n": 1}) + "\n" for p in prompts), "utf-8")
    plain, json_lines = read_prompts(folder / "a.txt"), read_prompts(str(folder / "a.jsonl"))
    assert plain == json_lines
    assert plain.prompts == tuple(prompts)
    assert plain.sha256 == digest(prompts)
    assert set(plain.sha256) <= set(string.hexdigits)


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa red apple\r\na green one\r\n")
    assert read_prompts(tmp_path / "a.txt").prompts == ("a red apple", "a green one")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", b"\n \n", r"a.txt: found no prompts, expected at least one"),
        ("a.txt", b"one\ntwo\none\n", r"a.txt:3: found the prompt of line 1 again"),
        ("a.txt", b"caf\xe9", r"a.txt: byte 3 is not UTF-8"),
        ("a.csv", b"one", r"a.csv: found a name ending in '.csv', expected .txt"),
        ("a.jsonl", b'{"prompt": "x"}\nplain\n', r"a.jsonl:2: found text that is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n', r'a.jsonl:1: found no text under "prompt"'),
        ("a.jsonl", b'["x"]\n', r'a.jsonl:1: found no text under "prompt"'),
        ("a.jsonl", b'{"prompt": " "}\n', r'a.jsonl:1: found no text under "prompt"'),
        ("a.jsonl", b"[" * 200_000, r"a.jsonl:1: found text that is not JSON"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": "a\\nb"}\n', r"a.jsonl:2: found a line break inside the prompt"),
        ("a.jsonl", b'{"prompt": "a\\r\\nb"}\n', r"a.jsonl:1: found a line break inside the prompt"),
        ("a.jsonl", b'\n{"prompt": "a \\ud83d b"}\n', r"a.jsonl:2: found half of a surrogate pair"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_place_and_reason(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=text):
        read_prompts(tmp_path / name)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"none.txt: no such file\. Give the path"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UsageError, match=r"folder.txt: cannot be read"):
        read_prompts(tmp_path / "folder.txt")


def test_a_file_over_the_limit_is_refused_unread(tmp_path):
    with (tmp_path / "big.txt").open("wb") as file:
        file.truncate(64 * 2**20 + 1)  # sparse
    with pytest.raises(UsageError, match="expected at most 64 MiB"):
        read_prompts(tmp_path / "big.txt")
