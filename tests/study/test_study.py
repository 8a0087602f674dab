"""The study: what is written comes back, settings are guarded, nothing is lost."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from math import inf, nan

import numpy as np
import optuna
import pytest

from schedsearch.errors import StudyError, StudyMismatchError
from schedsearch.study import Candidate, Evaluation, Objective, Spent, Study
from schedsearch.testing import toy_space

OBJECTIVES = (Objective(name="psnr", unit="dB", better="max"), Objective(name="latency", unit="ms", better="min"))
SETTINGS = {"seed": 1, "model": "toy", "budget": [4, "x"]}
SPACE = toy_space((("model", "CR123"), ("component", "CR")))


def made(ask: int, *, status: str = "ok", values: tuple[float, ...] | None = None) -> Evaluation:
    schedule = SPACE.sample(np.random.default_rng(ask))
    return Evaluation(
        candidate=Candidate(schedule=schedule, searcher="x", ask=ask, parents=(SPACE.base.id,)),
        status=status,
        reason="" if status == "ok" else "no memory left: ünïcode",
        values=((30.0 + ask / 3, 100.0 - ask) if values is None else values) if status == "ok" else (),
        metrics=(("ssim", 0.1 + 0.2), ("macs", 1e12)),
        samples=(("psnr", (30.123456789012345, inf)), ("ssim", ())),
        fidelity=2, device="a machine", seconds=0.25, denoiser_evals=20,
    )  # fmt: skip


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'deep' / 'study.db'}"


def opened(url, *, resume=False, **changes):
    fields = {"objectives": OBJECTIVES, "settings": SETTINGS, **changes}
    return Study.open(url, "mine", resume=resume, **fields)


RECORDS = (made(0), made(2, status="failed"), made(1), made(3, status="pruned"), made(7, values=(inf, 1.0)))


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_records_come_back_as_they_were_in_ask_order(kind, url):
    storage = url if kind == "sqlite" else optuna.storages.InMemoryStorage()
    with opened(storage) as study:
        for record in RECORDS:
            study.append(record)
        ordered = tuple(sorted(RECORDS, key=lambda record: record.candidate.ask))
        assert study.evaluations() == ordered
    with opened(storage, resume=True) as again:
        assert again.evaluations() == ordered
        assert again.frontier() == study.frontier()
        assert again.spent == study.spent == Spent(seconds=5 * 0.25, denoiser_evals=100)
        assert again.lookup(3) == RECORDS[3]
        assert again.lookup(4) is None
        assert again.find(RECORDS[2].candidate.schedule.id) == RECORDS[2]
        assert again.find("sha256:" + "0" * 64) is None
        assert [e.candidate.ask for e in again.frontier()] == [7]


def test_a_polished_candidate_is_another_measurement_of_its_schedule(url):
    plain = made(0)
    candidate = replace(plain.candidate, ask=1, polish="levels")
    polished = replace(plain, candidate=candidate, values=(50.0, 100.0))
    with opened(url) as study:
        study.append(plain)
        study.append(polished)
    with opened(url, resume=True) as again:
        assert again.find(plain.candidate.schedule.id) == plain
        assert again.find(candidate.key) == polished
        assert [e.candidate.polish for e in again.evaluations()] == ["", "levels"]
        assert again.find(replace(candidate, polish="scalars").key) is None


def test_load_reads_what_is_there(url):
    with opened(url) as study:
        study.append(RECORDS[0])
        with Study.load(url) as reader:
            assert (reader.name, reader.objectives, reader.settings) == ("mine", OBJECTIVES, SETTINGS)
            assert reader.evaluations() == (RECORDS[0],)
    with pytest.raises(StudyError, match="found the studies mine, expected 'other'"):
        Study.load(url, "other")


def test_optuna_sees_the_same_study(url):
    with opened(url) as study:
        for record in RECORDS[:4]:
            study.append(record)
    trials = optuna.load_study(study_name="mine", storage=url).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE", "PRUNED"]
    assert trials[0].values == list(RECORDS[0].values)
    assert optuna.load_study(study_name="mine", storage=url).metric_names == ["psnr", "latency"]


def test_an_existing_study_needs_resume(url):
    opened(url).close()
    with pytest.raises(StudyError, match=r"found 0 records.*Pass --resume to go on with it, or another --out"):
        opened(url)


def test_resume_starts_a_study_that_is_not_there(url):
    assert len(opened(url, resume=True)) == 0


def test_every_differing_setting_is_named(url):
    opened(url).close()
    with pytest.raises(StudyMismatchError) as error:
        opened(url, resume=True, settings={"seed": 2, "model": "toy", "extra": None}, objectives=OBJECTIVES[:1])
    text = str(error.value)
    assert "seed (found 1, expected 2)" in text
    assert 'budget (found [4, "x"], expected nothing)' in text
    assert "extra (found nothing, expected null)" in text
    assert "objectives (found" in text
    assert "model" not in text.replace("toy", "")


def test_a_study_whose_maker_died_before_the_header_is_started_anew(url):
    opened(url).close()
    path = url.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM study_user_attributes")
    with opened(url) as study:
        study.append(RECORDS[0])
    assert len(opened(url, resume=True)) == 1


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (made(0), "ask 0: found a record already, expected each ask recorded once"),
        (made(9, values=(1.0,)), r"ask 9: found the values \(1.0,\) with status ok, expected 2 numbers"),
        (made(9, values=(nan, 1.0)), r"ask 9: found the values \(nan, 1.0\)"),
        (
            replace(made(9), status="failed"),
            "with status failed, expected 0 numbers. Record what could not be measured",
        ),
    ],
)
def test_what_cannot_be_a_record_is_refused(record, text, url):
    with opened(url) as study:
        study.append(made(0))
        with pytest.raises(StudyError, match=text):
            study.append(record)
        assert len(study) == 1


def test_a_tampered_record_is_named(url):
    with opened(url) as study:
        study.append(made(0))
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE trial_user_attributes SET value_json = '{}'")
    with pytest.raises(StudyError, match=r"trial 0: found a record that cannot be read \(KeyError"):
        opened(url, resume=True)


@pytest.mark.parametrize("bad", ["sqlite:////proc/nowhere/x.db", "nosuch://x", "sqlite:///{tmp}/text.db"])
def test_a_storage_that_does_not_open_is_named(bad, tmp_path):
    (tmp_path / "text.db").write_text("this is no database, " * 100)
    url = bad.format(tmp=tmp_path)
    with pytest.raises((StudyError, OSError), match=r"storage .*: found .*expected a storage that opens"):
        opened(url)


def test_notes_are_kept_and_replaced(url):
    with opened(url) as study:
        assert "cost" not in study.notes
        study.notes.set("cost", {"floor_ms": 1.5, "per_op": [1, 2]})
        study.notes.set("cost", {"floor_ms": 2.5})
        study.notes.set("other", None)
    with opened(url, resume=True) as again:
        assert dict(again.notes) == {"cost": {"floor_ms": 2.5}, "other": None}
        assert len(again.notes) == 2
        assert again.settings == SETTINGS


def test_optuna_is_quiet_here_and_as_before_elsewhere(url, capfd):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        opened(url).close()
        assert optuna.logging.get_verbosity() == logging.INFO
        assert "study" not in "".join(capfd.readouterr())
    finally:
        optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_others_read_while_one_writes(url):
    with opened(url) as study:
        readers = [
            subprocess.Popen([sys.executable, "-c", READER, url], stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]
        for ask in range(40):
            study.append(made(ask))
        for reader in readers:
            out, _ = reader.communicate(timeout=60)
            assert reader.returncode == 0
            counts = [int(count) for count in out.split()]
            assert counts == sorted(counts)


READER = """
import sys
from schedsearch.study import Study
for _ in range(8):
    with Study.load(sys.argv[1]) as study:
        assert [e.candidate.ask for e in study.evaluations()] == list(range(len(study)))
        print(len(study))
"""


def test_importing_loads_no_storage_library():
    heavy = ("optuna", "moocore", "sqlalchemy", "torch")
    code = f"import sys, schedsearch.study; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_appending_stays_fast(url):
    records = [made(ask) for ask in range(300)]
    with opened(url) as study:
        for record in records[:100]:
            study.append(record)
        started = time.process_time()
        for record in records[100:]:
            study.append(record)
        per_record = (time.process_time() - started) / 200
    assert per_record < 0.010  # 2 to 4 ms on an idle core, up to 5,000 records; slack for busy machines


# ---- named by a path, as text or not


def test_a_path_as_text_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with opened("deep/study.db") as study:
        study.append(RECORDS[0])
        assert study.url == "sqlite:///deep/study.db"
    for name in ("deep/study.db", str(tmp_path / "deep" / "study.db"), tmp_path / "deep" / "study.db", "deep"):
        with Study.load(name) as study:
            assert study.evaluations() == RECORDS[:1]
    with Study.load(f"sqlite:///{tmp_path}/deep/study.db") as study:
        assert len(study) == 1


@pytest.mark.parametrize("name", ["none.db", "empty"])
def test_reading_what_is_not_there_makes_nothing(tmp_path, name):
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        StudyError, match=r"storage .*\.db: found no such file, expected a study that schedsearch wrote"
    ):
        Study.load(str(tmp_path / name))
    assert sorted(tmp_path.rglob("*")) == before
