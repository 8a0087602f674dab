"""How the command line behaves: exit codes, how much it says, colour, help with examples, completion."""

from __future__ import annotations

import inspect
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.text import Text

from schedsearch import _terminal, cli, cli_options
from schedsearch._terminal import Talk
from schedsearch.cli_examples import EXAMPLES
from schedsearch.errors import EvaluationError, ModelNotFoundError, NotReachedError, StudyError

DOCS = Path(__file__).resolve().parents[1] / "docs"


def command_of(verb):
    """The parsed form of a verb such as ``bench search``."""
    found = typer.main.get_command(cli.app)
    for word in verb.split():
        found = found.commands[word]
    return found


def verbs():
    """Every verb, those of groups with the group's name in front."""
    for name, command in typer.main.get_command(cli.app).commands.items():
        inner = getattr(command, "commands", None)
        yield from [name] if inner is None else [f"{name} {word}" for word in inner]


# ---- exit codes


def test_exit_codes_are_the_documented_ones(run_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    table = dict(re.findall(r"^\| (\d+) \| (.+?) \|$", (DOCS / "command-line.md").read_text("utf-8"), re.MULTILINE))
    assert table == {str(code): meaning for code, meaning in cli.EXIT_CODES.items()}
    told = run_cli("--help").out
    assert all(re.search(rf"^ +{code} +{re.escape(meaning)}", told, re.MULTILINE) for code, meaning in table.items())


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (NotReachedError("--budget: found no schedule"), 3),
        (EvaluationError("t.json: found damaged JSON"), 2),
        (ModelNotFoundError("model: found 'x'"), 2),
        (StudyError("study: found 3 records"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_how_a_search_ends_is_its_code(run_cli, monkeypatch, raised, code):
    def end(_):
        raise raised

    monkeypatch.setattr("schedsearch.optimize.optimize", end)
    done = run_cli("optimize", "--model", "m", "--budget", "4x")
    assert done.code == code
    assert done.out == ""


def test_sigterm_ends_a_search_like_ctrl_c(run_cli, monkeypatch):
    def end(_):
        with pytest.raises(KeyboardInterrupt):  # what a search writes its frontier upon
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("schedsearch.optimize.optimize", end)
    done = run_cli("optimize", "--model", "m", "--budget", "4x")
    assert done.code == 143
    assert "Go on with: schedsearch optimize --model m --budget 4x --resume" in done.err
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("bench.run_contest", "bench search --only auto"),
        ("bench.run_profile", "profile --model m"),
        ("bench.run_sensitivity", "sensitivity --model m"),
    ],
)
def test_ctrl_c_in_a_verb_that_keeps_its_work_says_how_to_go_on(run_cli, monkeypatch, function, words):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"schedsearch.{function}", interrupted)
    done = run_cli(*words.split())
    assert done.code == 130
    assert done.err == f"\nstopped; what was measured is kept. Go on with: schedsearch {words}\n"


# ---- how much is said


@pytest.mark.parametrize("words", ["-q show {}", "show {} --quiet", "show -q {}"])
def test_quiet_and_verbose_stand_before_or_behind_the_verb(run_cli, schedule_file, words):
    seen = []

    def watched(path):
        seen.append(_terminal.talk_of())
        return original(path)

    from schedsearch import schedule

    original = schedule.read_schedule
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "read_schedule", watched)
        assert run_cli(*words.format(schedule_file).split()).code == 0
    assert seen == [Talk.QUIET]
    assert _terminal.talk_of() is Talk.NORMAL, "the next call talks as it is asked to"


def test_words_behind_two_dashes_are_no_options():
    assert cli.hoisted(["generate", "--model", "m", "--", "-q"]) == ["generate", "--model", "m", "--", "-q"]


def test_quiet_validate_says_only_what_is_wrong(run_cli, schedule_file, tmp_path):
    done = run_cli("-q", "validate", str(schedule_file), str(tmp_path / "none.json"))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: none.json: ")


def test_quiet_models_leaves_out_the_remark(run_cli):
    assert "Any local folder" in run_cli("models").out
    assert "Any local folder" not in run_cli("models", "-q").out


def test_verbose_shows_where_an_error_arose(run_cli, tmp_path):
    assert "Traceback" not in run_cli("show", str(tmp_path / "none.json")).err
    assert "Traceback" in run_cli("show", str(tmp_path / "none.json"), "-v").err


def test_quiet_and_verbose_exclude_each_other(run_cli):
    done = run_cli("-q", "models", "-v")
    assert (done.code, done.err) == (
        2, "error: found both --quiet and --verbose, expected at most one. Leave one out.\n",
    )  # fmt: skip


@pytest.mark.parametrize("talk", Talk)
def test_a_display_says_as_much_as_it_is_asked_to(capsys, talk):
    from schedsearch.optimize import Display

    display = Display(talk=talk)
    with display.stage("searching", 4) as advance:
        advance(2, 4, "halfway")
    display.line("a remark")
    display.detail("a detail")
    display.table("numbers", ("name", "n"), [("a", "1.50")])
    out = capsys.readouterr().out
    assert ("a remark" in out) == (talk >= Talk.NORMAL)
    assert ("numbers" in out) == (talk >= Talk.NORMAL)
    assert ("a detail" in out) == ("searching: 0.0 s" in out) == (talk is Talk.VERBOSE)
    assert "halfway" not in out, "bars are for terminals"
    assert "\x1b" not in out
    assert display.tables[0].rows == (("a", 1.5),)


def test_forced_colour_does_not_make_bars_move_in_a_pipe(capsys, monkeypatch):
    from schedsearch.optimize import Display

    monkeypatch.setenv("FORCE_COLOR", "1")
    with Display().stage("searching", 4) as advance:
        advance(2, 4, "halfway")
    assert "halfway" not in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are for POSIX systems")
@pytest.mark.parametrize(("variables", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_colour_unless_it_says_no(schedule_file, variables, is_coloured):
    import pty

    leader, follower = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR"}}
    command = [sys.executable, "-m", "schedsearch.cli", "show", str(schedule_file)]
    with subprocess.Popen(
        command, stdout=follower, stderr=follower, env={**environment, "TERM": "xterm-256color", **variables}
    ):
        os.close(follower)
        told = b""
        try:
            while block := os.read(leader, 65536):
                told += block
        except OSError:  # the other end was closed
            pass
    os.close(leader)
    assert b"CCRRC" in re.sub(rb"\x1b\[[0-9;]*m", b"", told)
    assert bool(re.search(rb"\x1b\[[0-9;]*3[0-7]", told)) == is_coloured


# ---- help


def test_every_verb_has_examples_and_the_help_shows_them(run_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert sorted(EXAMPLES) == sorted(verbs())
    for verb, lines in EXAMPLES.items():
        told = run_cli(*verb.split(), "--help").out
        assert [line for line in lines if f"  {line}" not in told] == []


@pytest.fixture
def workshop(schedule, schedule_file, frontier_folder, tmp_path, monkeypatch):
    """A folder with the files that examples speak of, and verbs that note what they were asked instead of measuring."""
    import json

    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text("format: schedsearch.space\nversion: 1\nname: mine\nlevels: {model: CR}\n")
    (tmp_path / "report.json").write_text(json.dumps({"format": "x"}))
    asked = []

    def note(answer):
        def run(settings, *rest, **options):
            asked.append(settings)
            return answer

        return run

    from schedsearch import bench, optimize

    monkeypatch.setattr(optimize, "optimize", note(optimize.Optimized(chosen=None, results=(), written=())))
    monkeypatch.setattr(optimize, "run_correct", note(None))
    for name, answer in (
        ("run_transfer", (Path("report.json"),)),
        ("run_profile", Path("report.json")),
        ("run_sensitivity", Path("report.json")),
        ("run_calibrate", ()),
        ("run_contest", ()),
        ("run_speeds", ()),
        ("run_cachequant", ()),
        ("run_compare", None),
    ):
        monkeypatch.setattr(bench, name, note(answer))
    monkeypatch.setattr("schedsearch_reports.report_data", note(None))
    monkeypatch.setattr("schedsearch_reports.write_report", lambda _, path: path)
    monkeypatch.setattr("schedsearch_reports.write_stills", lambda _, path: (path.with_suffix(".png"),))
    return asked


@pytest.mark.parametrize(("verb", "line"), [(verb, line) for verb, lines in EXAMPLES.items() for line in lines])
def test_every_example_works_as_written(run_cli, workshop, monkeypatch, verb, line):
    words = list(itertools.takewhile(lambda word: word != ">", shlex.split(line)))
    assert words[0] == "schedsearch"
    if verb == "generate":  # the only verb that works in its own function: it has to get as far as the weights
        monkeypatch.setattr("schedsearch.evaluate.find_card", lambda name: (_ for _ in ()).throw(StudyError(name)))
        assert run_cli(*words[1:]).err == "error: flux-mini\n"
        return
    done = run_cli(*words[1:])
    assert done.code == 0, done.err
    assert len(workshop) == (verb not in {"show", "validate", "models", "metrics"})


def test_help_texts_lose_nothing_to_markup():
    """Square brackets in a help are taken for styles and vanish, unless they are escaped."""
    for verb in verbs():
        command = command_of(verb)
        texts = [inspect.cleandoc(command.help), *(param.help or "" for param in command.params)]
        assert [text for text in texts if Text.from_markup(text).plain != text] == [], verb


# ---- completion


def completed(verb, option, incomplete):
    """What a shell would offer."""
    param = next(p for p in command_of(verb).params if option in p.opts)
    context = command_of(verb).make_context(verb, [], resilient_parsing=True)
    return [item.value for item in param.shell_complete(context, incomplete)]


def test_names_that_are_completed_are_those_there_are():
    from schedsearch import bench, evaluate, schedule, search
    from schedsearch.bench import _cachequant
    from schedsearch.evaluate import _policy, _quality

    assert sorted(cli_options.SEARCHERS) == sorted(search.SEARCHERS)
    assert tuple(evaluate.METRICS) == cli_options.METRICS
    assert cli_options.REFERENCES == _quality.REFERENCES
    assert (*evaluate.POLICIES, "all") == cli_options.POLICIES
    assert _policy.Scales.__args__ == cli_options.SCALES
    assert cli_options.LAYERS == evaluate.LAYER_TABLES
    assert set(cli_options.FORMATS) <= set(schedule.NUMBER_FORMATS)
    assert tuple(bench.CONTESTANTS) == cli_options.CONTESTANTS
    assert tuple(bench.ABLATION) == cli_options.ABLATION
    assert tuple(bench.FAMILIES) == cli_options.FAMILIES
    assert {*bench.families(), "diffusers", "cachedit"} >= {*cli_options.COMPARED}
    assert [name for name in cli_options.COMPARED if name not in ("diffusers", "cachedit")] == [
        name for name in bench.families() if name in cli_options.COMPARED
    ]
    assert tuple(_cachequant.FORMATS) == cli_options.CACHEQUANT
    assert [schedule.parse_budget(text) for text in cli_options.BUDGETS]


def test_models_spaces_and_lists_are_completed(tmp_path, monkeypatch):
    from schedsearch.evaluate import cards
    from schedsearch.space import shipped_spaces

    monkeypatch.chdir(tmp_path)
    (tmp_path / "flux-own").mkdir()
    (tmp_path / "flux-own" / "model_index.json").touch()
    (tmp_path / "flat.yaml").touch()
    named = [card.name for card, _, _ in cards() if "/" not in card.name]
    assert completed("optimize", "--model", "") == [*named, "flux-own"]
    assert completed("optimize", "--model", "flux-m") == ["flux-mini"]
    assert completed("optimize", "--space", "") == [*shipped_spaces(), "flat.yaml"]
    assert completed("optimize", "--space", f"{tmp_path}/f") == [f"{tmp_path}/flat.yaml"]
    assert completed("optimize", "--search", "a") == ["auto", "anneal", "autodiffusion"]
    assert completed("bench search", "--only", "auto,s") == ["auto,s3"]
    assert completed("optimize", "--metric", "psnr,ss") == ["psnr,ssim"]
    assert completed("bench search", "--only", "auto,a") == ["auto,autodiffusion", "auto,anneal"]
    assert completed("optimize", "--model", "/nowhere/at/all/x") == []


def test_a_shell_completes_verbs_without_loading_torch():
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules or 'numpy' in sys.modules)))\n"
        "from schedsearch.cli import main\nmain()"
    )
    variables = {
        **os.environ,
        "_SCHEDSEARCH_COMPLETE": "complete_bash",
        "COMP_WORDS": "schedsearch optimize --model flux-m",
        "COMP_CWORD": "3",
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["flux-mini"], "False")
