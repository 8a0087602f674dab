"""The verbs under ``schedsearch bench``: everything the project claims, measured again by one command each.

Like those of `schedsearch.cli`, they import what they need when they run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schedsearch.errors import UsageError

bench = typer.Typer(
    name="bench",
    help="Measure the claims again: searchers, speeds, single axes.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Model = Annotated[str, typer.Option(metavar="NAME", help="A model that `schedsearch models` lists.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder of studies and results; what is there is not redone.")]
Only = Annotated[str, typer.Option(metavar="NAMES", help="Entries, separated by commas; all without it.")]
Seeds = Annotated[int, typer.Option(metavar="N", help="Seeds 0 to N - 1.", min=1)]
Prompts = Annotated[int, typer.Option(metavar="N", help="Calibration prompts to measure on.", min=1)]
Evals = Annotated[int, typer.Option(metavar="N", help="Denoiser evaluations each run may spend.", min=1)]
Jobs = Annotated[int, typer.Option(metavar="N", help="Processes.", min=1)]
Device = Annotated[str, typer.Option(metavar="D", help="cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option(metavar="T", help="float32, bfloat16 or float16.")]


@bench.command()
def search(
    *,
    model: Model = "flux-mini",
    out: Out = Path("runs/bench-search"),
    only: Only = "",
    seeds: Seeds = 5,
    prompts: Prompts = 4,
    evals: Evals = 6720,
    jobs: Jobs = 1,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Run all searchers and compare hypervolume against cost."""
    from schedsearch.bench import CONTESTANTS, ContestSettings, run_contest

    settings = ContestSettings(
        model=model,
        out=out,
        entries=_names(only, CONTESTANTS),
        seeds=tuple(range(seeds)),
        prompts=prompts,
        evals=evals,
        jobs=jobs,
        device=device,
        dtype=dtype,
    )
    run_contest(settings, CONTESTANTS, rival="auto", name="search")


@bench.command()
def ablation(
    *,
    model: Model = "flux-mini",
    out: Out = Path("runs/bench-ablation"),
    only: Only = "",
    seeds: Seeds = 1,
    prompts: Prompts = 4,
    evals: Evals = 6720,
    jobs: Jobs = 1,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Confine the default search to one axis at a time and compare the frontiers."""
    from schedsearch.bench import ABLATION, ContestSettings, run_contest

    settings = ContestSettings(
        model=model,
        out=out,
        entries=_names(only, ABLATION),
        seeds=tuple(range(seeds)),
        prompts=prompts,
        evals=evals,
        jobs=jobs,
        device=device,
        dtype=dtype,
    )
    run_contest(settings, ABLATION, rival="joint", name="ablation")


@bench.command()
def speeds(
    *,
    frontier: Annotated[Path, typer.Option(metavar="DIR", help="Our frontier folder, as `optimize` wrote it.")],
    model: Model = "flux-mini",
    studies: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of `bench search`, for the other searchers' rows.")
    ] = None,
    out: Out = Path("runs/bench-speeds"),
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Compare our schedules with the best other way to reach each speed, on held-out prompts."""
    from schedsearch.bench import SpeedSettings, run_speeds

    run_speeds(SpeedSettings(model=model, frontier=frontier, studies=studies, out=out, device=device, dtype=dtype))


def _names(only: str, known: dict[str, object]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in only.split(",") if name.strip())
    for name in names:
        if name not in known:
            raise UsageError(f"--only: found {name!r}, expected some of {', '.join(known)}.")
    return names or tuple(known)
