"""What every verb shares: help, version, exit codes and how errors look."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from schedsearch.cli_search import resume_command
from schedsearch.errors import SchedSearchError
from schedsearch.search import SEARCHERS

VERBS = (
    "optimize", "correct", "generate", "show", "validate", "models", "evaluate", "profile", "sensitivity", "calibrate",
    "bench",
)  # fmt: skip


def program(*words, **options):
    command = [sys.executable, "-m", "schedsearch.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_help_names_every_verb_and_is_quick():
    resource = pytest.importorskip("resource", reason="tells what a process took, on POSIX systems")

    def spent():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    times = []
    for _ in range(3):
        start = spent()  # not the wall's clock, which others on the machine have a part in
        done = program("--help")
        times.append(spent() - start)
    assert done.returncode == 0
    assert all(f" {verb} " in done.stdout for verb in VERBS)
    assert min(times) < 0.5, f"seconds per run: {times}"


def test_help_of_a_verb_lists_the_options_that_the_documentation_promises(run_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    told = run_cli("optimize", "--help").out
    promised = (
        "model budget max-memory sensitivity search space trials minutes prompts metric reference device dtype seed "
        "storage out resume watch json"
    )
    assert [name for name in promised.split() if f"--{name} " not in told] == []
    proposes = " ".join(told.replace("│", " ").split()).split("Who proposes: ")[1].split("[default: auto]")[0]
    assert sorted(re.findall(r"\b(?!or\b)[a-z0-9]+", proposes)) == sorted(SEARCHERS)


def test_version(run_cli):
    done = run_cli("--version")
    assert (done.code, done.out.split()[0]) == (0, "schedsearch")
    assert done.out.split()[1][0].isdigit()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nonsense",), "No such command 'nonsense'"),
        (("show",), "Missing argument 'FILE"),
        (("optimize", "--model", "flux-mini"), "Missing option '--budget'"),
        (("optimize", "--model", "m", "--budget", "4x", "--trials", "0"), "'--trials'"),
        (("optimize", "--model", "m", "--budget", "4x", "--seed", "-1"), "'--seed'"),
        (("optimize", "--model", "m", "--budget", "4x", "--trials", "2", "--minutes", "1"),
         "error: found both --trials 2 and --minutes 1, expected at most one. Leave one out."),
        (("optimize", "--model", "m", "--budget", "4x", "--minutes", "-3"),
         "error: --minutes: found -3, expected a number above 0."),
        (("optimize", "--model", "m", "--budget", "4x", "--minutes", "nan"),
         "error: --minutes: found nan, expected a number above 0."),
        (("optimize", "--model", "flux-mini", "--budget", "4x", "--reference", "best"),
         "error: reference: found 'best', expected one of default, converged."),
        (("optimize", "--model", "flux-mini", "--budget", "4x", "--search", "oracle"),
         "error: --search: found 'oracle', expected one of anneal, auto, autodiffusion, bayes, cachequant, ecad, "),
        (("generate", "--model", "m", "--budget", "4x", "a cat"),
         "error: --budget: found '4x' without --schedule, expected a frontier folder to choose from."),
        (("generate", "--model", "m", "a cat", "  "), "error: PROMPT[1]: found an empty text, expected words."),
    ],
)  # fmt: skip
def test_a_call_that_cannot_be_meant_is_refused_with_code_2(run_cli, words, said):
    done = run_cli(*words)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_an_error_meant_for_the_user_is_one_paragraph(run_cli, monkeypatch):
    def fail(folder):
        raise SchedSearchError("weights: found none, expected some. Get them.")

    monkeypatch.setattr("schedsearch.schedule.read_schedule", fail)
    done = run_cli("show", "x.json")
    assert (done.code, done.out, done.err) == (2, "", "error: weights: found none, expected some. Get them.\n")


def test_an_unexpected_error_keeps_its_traceback(run_cli, monkeypatch):
    def fail(folder):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("schedsearch.schedule.read_schedule", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run_cli("show", "x.json")


def test_ctrl_c_ends_with_130(run_cli, monkeypatch):
    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr("schedsearch.schedule.read_schedule", interrupted)
    assert run_cli("show", "x.json").code == 130


def test_ctrl_c_in_a_search_says_how_to_go_on(run_cli, monkeypatch):
    import schedsearch.optimize

    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(schedsearch.optimize, "optimize", interrupted)
    done = run_cli("optimize", "--model", "flux-mini", "--budget", "4x", "--out", "my runs")
    assert done.code == 130
    assert done.err.strip() == (
        "stopped; what was measured is kept. "
        "Go on with: schedsearch optimize --model flux-mini --budget 4x --out 'my runs' --resume"
    )


def test_the_search_gets_every_option_as_it_was_given(run_cli, monkeypatch, tmp_path):
    import schedsearch.optimize

    given = []
    monkeypatch.setattr(schedsearch.optimize, "optimize", given.append)
    words = (
        "--model m --budget 60%macs --search ecad --minutes 2.5 --metric ssim --reference converged "
        "--device cuda:1 --dtype bfloat16 --seed 7"
    )
    done = run_cli(
        "optimize", *words.split(), "--prompts", str(tmp_path / "p.txt"), "--storage", "sqlite:///s.db",
        "--out", str(tmp_path), "--sensitivity", str(tmp_path / "s.json"), "--max-memory", "8GB", "--resume",
        "--space", "flux", "--watch", "0",
    )  # fmt: skip
    assert done.code == 0
    assert given == [
        schedsearch.optimize.OptimizeSettings(
            model="m",
            budget="60%macs",
            max_memory="8GB",
            sensitivity=tmp_path / "s.json",
            search="ecad",
            trials=None,
            minutes=2.5,
            prompts=tmp_path / "p.txt",
            metric="ssim",
            reference="converged",
            device="cuda:1",
            dtype="bfloat16",
            seed=7,
            storage="sqlite:///s.db",
            out=tmp_path,
            resume=True,
            space="flux",
            watch=0,
        )
    ]


def test_a_reader_that_closes_early_is_no_error(schedule_file):
    # As `schedsearch validate ... | head -n 1`: far more output than a pipe holds.
    command = [sys.executable, "-m", "schedsearch.cli", "validate", *[schedule_file.name] * 3000]
    with subprocess.Popen(
        command, cwd=schedule_file.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().startswith("ok sha256:")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_resume_is_named_once():
    assert resume_command(["x", "optimize", "--resume"]) == "schedsearch optimize --resume"
