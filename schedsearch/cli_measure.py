"""The verbs that do not search: they measure schedules and claims, and make up for what a schedule costs.

Like those of `schedsearch.cli`, they import what they need when they run.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from schedsearch import _terminal
from schedsearch.cli_examples import epilog
from schedsearch.cli_options import (
    ABLATION,
    CACHEQUANT,
    COMPARED,
    CONTESTANTS,
    FAMILIES,
    FORMATS,
    LAYERS,
    Device,
    Dtype,
    Into,
    Json,
    Model,
    Seed,
    kept_work,
    one_of,
    some_of,
)
from schedsearch.errors import UsageError

if TYPE_CHECKING:
    from schedsearch.bench import Contestant
    from schedsearch.evaluate import LayerTables

bench = typer.Typer(
    name="bench",
    help="Measure the claims again: searchers, speeds, single axes.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder of studies and results; what is there is not redone.")]
Seeds = Annotated[int, typer.Option(metavar="N", help="Seeds 0 to N - 1.", min=1)]
Prompts = Annotated[int, typer.Option(metavar="N", help="Calibration prompts to measure on.", min=1)]
Evals = Annotated[int, typer.Option(metavar="N", help="Denoiser evaluations each run may spend.", min=1)]
Jobs = Annotated[int, typer.Option(metavar="N", help="Processes.", min=1)]


def _only(names: Sequence[str]) -> Any:
    """The option that picks entries, with what completes it."""
    return typer.Option(
        "--only", metavar="NAMES", help="Entries, separated by commas; all without it.", autocompletion=some_of(names)
    )


def evaluate(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A schedule file or frontier folder.")],
    *,
    model: Model,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHERE",
            help="WIDTHxHEIGHT, batch=N, steps=N of the plain run, or some of them joined by commas. Repeatable.",
        ),
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(metavar="N", help="Held-out prompts to measure on; all of them without it.", min=1),
    ] = None,
    repeats: Annotated[int, typer.Option(metavar="N", help="Timed rounds.", min=1)] = 10,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Measure schedules where they were searched and elsewhere, and write FILE.at.json beside each."""
    from schedsearch.bench import TransferSettings, run_transfer

    written = run_transfer(
        TransferSettings(
            source=source,
            model=model,
            at=tuple(at or ()),
            prompts=prompts,
            repeats=repeats,
            device=device,
            dtype=dtype,
            command=shlex.join(["schedsearch", *sys.argv[1:]]),
        )
    )
    if as_json:
        _terminal.print_json("evaluate", files=[{"path": path, **_document(path)} for path in written])


def correct(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A schedule file.")],
    *,
    model: Model,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The corrected schedule.", show_default="FILE-corrected.json")
    ] = None,
    prompts: Annotated[int, typer.Option(metavar="N", help="Calibration prompts to fit on.", min=1)] = 32,
    layers: Annotated[
        str,
        typer.Option(
            metavar="WORD",
            help="Corrections of low-bit layers: one per step, constant (free at run time), or none.",
            autocompletion=one_of(LAYERS),
        ),
    ] = "step",
    one_pass: Annotated[
        bool, typer.Option("--one-pass", help="Fit all steps from one run, instead of each from a corrected one.")
    ] = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fit corrections of what a schedule reuses and rounds, keep what helps, and write a new schedule."""
    from schedsearch.optimize import CorrectSettings, Display, run_correct

    display = Display()
    written = run_correct(
        CorrectSettings(
            source=source,
            model=model,
            out=out,
            prompts=prompts,
            layers=cast("LayerTables", layers),  # checked where it is used
            on_policy=not one_pass,
            seed=seed,
            device=device,
            dtype=dtype,
        ),
        display,
    )
    if as_json:
        _terminal.print_json("correct", path=written, tables=display.tables)


def compare(
    *,
    model: Model = "flux-mini",
    schedule: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A schedule of yours. Repeatable.")
    ] = None,
    frontier: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Your frontier folder, as `optimize` wrote it.")
    ] = None,
    out: Out = Path("runs/compare"),
    only: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Families, separated by commas; diffusers or cachedit for all of a library; all without it.",
            autocompletion=some_of(COMPARED),
        ),
    ] = "",
    prompts: Annotated[int, typer.Option(metavar="N", help="Held-out prompts to run everything on.", min=1)] = 12,
    minutes: Annotated[
        float,
        typer.Option(metavar="N", help="Try settings for 60 % of it; begin no prompt after it. More for large models."),
    ] = 14.0,
    into: Into = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Run schedules beside everything one might use instead: compile, fewer steps, other libraries' caches, masks."""
    from schedsearch.bench import CompareSettings, families_named, run_compare

    with kept_work():
        found = run_compare(
            CompareSettings(
                model=model,
                schedules=tuple(schedule or ()),
                frontier=frontier,
                out=out,
                only=families_named(only),
                prompts=prompts,
                minutes=minutes,
                into=into,
                device=device,
                dtype=dtype,
                command=shlex.join(["schedsearch", *sys.argv[1:]]),
            )
        )
    if as_json:
        _terminal.print_json("compare", comparison=found)


def profile(
    *,
    model: Model,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Build the model from its configuration alone: the same shapes, random weights, no download.",
        ),
    ] = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    formats: Annotated[
        str,
        typer.Option(
            metavar="WORDS",
            help="Number formats to time linear layers in, separated by commas: WEIGHT, behind it /ACTIVATION, "
            "@SCALES and +RANK where wanted, such as int8, fp8_e4m3, int4/bf16 or int4+32.",
            autocompletion=some_of(FORMATS),
        ),
    ] = "",
    eager: Annotated[bool, typer.Option("--eager/--no-eager", help="Time operations as they are.")] = True,
    compiled: Annotated[
        bool, typer.Option("--compiled/--no-compiled", help="Time operations under torch.compile.")
    ] = True,
    every_execution: Annotated[
        bool,
        typer.Option("--every-execution", help="Time all ways to carry a format out, not only what a schedule gets."),
    ] = False,
    schedule: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Also run this schedule end to end against its prediction. Repeatable."),
    ] = None,
    examples: Annotated[
        bool, typer.Option("--examples", help="Also run simple schedules of 2x, 4x and 8x, and one of block rows.")
    ] = False,
    repeats: Annotated[int, typer.Option(metavar="N", help="Timed rounds per operation.", min=1)] = 20,
    rounds: Annotated[int, typer.Option(metavar="N", help="Timed rounds of the schedules.", min=1)] = 5,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The latency table; what it has is kept.", show_default="runs/profile-MODEL-DTYPE.json"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time a model's operations in each number format, and schedules against what the times predict."""
    from schedsearch.bench import ProfileSettings, run_profile

    with kept_work():
        written = run_profile(
            ProfileSettings(
                model=model,
                random_weights=random_weights,
                device=device,
                dtype=dtype,
                formats=formats,
                eager=eager,
                compiled=compiled,
                every_execution=every_execution,
                schedules=tuple(schedule or ()),
                examples=examples,
                repeats=repeats,
                rounds=rounds,
                out=out,
                command=shlex.join(["schedsearch", *sys.argv[1:]]),
            )
        )
    if as_json:
        _terminal.print_json("profile", path=written, table=_document(written))


@bench.command(epilog=epilog("bench search"))
def search(
    *,
    model: Model = "flux-mini",
    out: Out = Path("runs/bench-search"),
    only: Annotated[str, _only(CONTESTANTS)] = "",
    seeds: Seeds = 5,
    prompts: Prompts = 4,
    evals: Evals = 6720,
    jobs: Jobs = 1,
    into: Into = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Run all searchers and compare hypervolume against cost."""
    from schedsearch.bench import CONTESTANTS

    _contest(
        CONTESTANTS, only, seeds, rival="auto", name="search", into=into,
        as_json=as_json,
        model=model, out=out, prompts=prompts, evals=evals, jobs=jobs, device=device, dtype=dtype,
    )  # fmt: skip


@bench.command(epilog=epilog("bench ablation"))
def ablation(
    *,
    model: Model = "flux-mini",
    out: Out = Path("runs/bench-ablation"),
    only: Annotated[str, _only(ABLATION)] = "",
    seeds: Seeds = 1,
    prompts: Prompts = 4,
    evals: Evals = 6720,
    jobs: Jobs = 1,
    into: Into = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Confine the default search to one axis at a time and compare the frontiers."""
    from schedsearch.bench import ABLATION

    _contest(
        ABLATION, only, seeds, rival="joint", name="ablation", into=into,
        as_json=as_json,
        model=model, out=out, prompts=prompts, evals=evals, jobs=jobs, device=device, dtype=dtype,
    )  # fmt: skip


@bench.command(epilog=epilog("bench speeds"))
def speeds(
    *,
    frontier: Annotated[Path, typer.Option(metavar="DIR", help="Our frontier folder, as `optimize` wrote it.")],
    model: Model = "flux-mini",
    studies: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of `bench search`, for the other searchers' rows.")
    ] = None,
    out: Out = Path("runs/bench-speeds"),
    only: Annotated[str, _only(FAMILIES)] = "",
    prompts: Prompts = 8,
    into: Into = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Compare our schedules with the best other way to reach each speed, on held-out prompts."""
    from schedsearch.bench import FAMILIES, SpeedSettings, run_speeds

    with kept_work():
        rows = run_speeds(
            SpeedSettings(
                model=model,
                frontier=frontier,
                studies=studies,
                out=out,
                families=_names(only, FAMILIES),
                prompts=prompts,
                into=into,
                device=device,
                dtype=dtype,
            )
        )
    if as_json:
        _terminal.print_json("bench speeds", rows=rows)


@bench.command(epilog=epilog("bench cachequant"))
def cachequant(
    *,
    model: Model = "flux-mini",
    out: Out = Path("runs/bench-cachequant"),
    only: Annotated[str, _only(CACHEQUANT)] = "",
    computed: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Steps that run the denoiser, separated by commas.")
    ] = "14,9,7,5",
    prompts: Annotated[int, typer.Option(metavar="N", help="Calibration prompts to fit on.", min=1)] = 16,
    held_out: Annotated[int, typer.Option(metavar="N", help="Held-out prompts to measure on.", min=1)] = 32,
    into: Into = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Choose reuse and low bits together or one after the other, corrected and not, at equal MACs and bits."""
    from schedsearch.bench import CacheQuantSettings, run_cachequant
    from schedsearch.bench._cachequant import FORMATS

    with kept_work():
        rows = run_cachequant(
            CacheQuantSettings(
                model=model,
                out=out,
                formats=_names(only, FORMATS),
                computed=_numbers(computed),
                prompts=prompts,
                held_out=held_out,
                into=into,
                device=device,
                dtype=dtype,
            )
        )
    if as_json:
        _terminal.print_json("bench cachequant", rows=rows)


def _document(path: Path) -> dict[str, Any]:
    """What a JSON file that was just written holds."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _numbers(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if not word.isascii() or not word.isdigit():
            raise UsageError(f"--computed: found {word!r}, expected whole numbers separated by commas.")
    return tuple(map(int, words))


def _contest(
    known: Mapping[str, Contestant],
    only: str,
    seeds: int,
    *,
    rival: str,
    name: str,
    into: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Runs the entries named in ``only`` with ``seeds`` seeds; the other settings are `ContestSettings`' own."""
    from schedsearch.bench import ContestSettings, run_contest

    chosen = ContestSettings(entries=_names(only, known), seeds=tuple(range(seeds)), **settings)
    with kept_work():
        standings = run_contest(chosen, known, rival=rival, name=name, into=into)
    if as_json:
        _terminal.print_json(f"bench {name}", rival=rival, rows=standings)


def _names(only: str, known: Mapping[str, object]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in only.split(",") if name.strip())
    for name in names:
        if name not in known:
            raise UsageError(f"--only: found {name!r}, expected some of {', '.join(known)}.")
    return tuple(dict.fromkeys(names)) or tuple(known)
