"""The choice of flux-mini's prompts: the committed script gives the committed files, and it is a fair sample."""

from __future__ import annotations

from collections import Counter

import pytest

from schedsearch_calibration import choose, flux_mini_path, prompt_set, prompt_set_names
from schedsearch_calibration.flux_mini import COLOURS, WHITE_SHARE

SETS = ("flux-mini-calibration", "flux-mini-held-out")


def test_the_script_writes_the_committed_files_again(tmp_path):
    shipped = flux_mini_path().parents[1] / "prompts"
    for name in ("general-calibration.jsonl", "general-held-out.jsonl"):
        (tmp_path / name).write_bytes((shipped / name).read_bytes())
    choose.write(tmp_path)
    for name in (*(f"{name}.jsonl" for name in prompt_set_names()), "index.json"):
        assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes(), name


def test_there_are_1280_captions_without_people_and_flags():
    captions = choose.captions()
    assert len(captions) == len({caption.name for caption in captions}) == 1280
    assert not {caption.category for caption in captions} & {"People & Body", "Flags"}


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_training_captions_and_the_training_share_of_white(name):
    known = {caption.name: caption.category for caption in choose.captions()}
    colours: Counter[str] = Counter()
    categories: Counter[str] = Counter()
    for prompt in prompt_set(name).prompts:
        caption, background = prompt.rsplit(", ", 1)
        colour, word = background.split(" ")
        assert word == "background"
        colours[colour] += 1
        categories[known[caption]] += 1
    assert colours.pop("white") == round(WHITE_SHARE * 64)
    assert set(colours) == set(COLOURS) - {"white"}
    assert max(colours.values()) - min(colours.values()) <= 1
    for category, count in Counter(known.values()).items():
        assert abs(categories[category] - 64 * count / 1280) < 1, category


def test_the_two_sets_share_no_name_not_even_on_another_colour():
    first, second = ({prompt.rsplit(", ", 1)[0] for prompt in prompt_set(name).prompts} for name in SETS)
    assert len(first) == len(second) == 64
    assert not first & second


def test_another_seed_chooses_otherwise_and_the_same_seed_the_same():
    pool = choose.captions()
    assert choose.choose(pool, seed=1) == choose.choose(tuple(reversed(pool)), seed=1) != choose.choose(pool, seed=2)


def test_a_category_too_small_for_its_share_is_an_error():
    pool = [choose.Caption(name=f"icon {i}", category="c") for i in range(5)]
    with pytest.raises(ValueError, match="category 'c' has 5 captions, 6 are needed"):
        choose.choose(pool, size=3)
