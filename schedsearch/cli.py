"""The command line: turns words into calls and results into lines.

Verbs import what they need when they run, so that ``--help`` stays fast. All they do can also be called from Python.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from schedsearch import __version__
from schedsearch.cli_formats import calibrate, sensitivity
from schedsearch.cli_measure import bench, correct, evaluate, profile
from schedsearch.cli_report import report
from schedsearch.errors import SchedSearchError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from schedsearch.evaluate import ReferenceName

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
_PIPE_WIDTH = 4096

app = typer.Typer(
    name="schedsearch",
    help="Search schedules that make a diffusion model faster on this machine, and use them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # an unexpected error is a bug, and a plain traceback is its best report
    add_completion=False,
    rich_markup_mode=None,
)

app.add_typer(bench)
for _verb in (correct, evaluate, profile, sensitivity, calibrate, report):
    app.command()(_verb)

Model = Annotated[
    str,
    typer.Option(metavar="NAME", help="A name that `schedsearch models` lists, a local folder, or a hub id."),
]
Device = Annotated[str, typer.Option(metavar="D", help="cpu, cuda, cuda:1 or mps.", show_default=True)]
Dtype = Annotated[str, typer.Option(metavar="T", help="float32, bfloat16 or float16.", show_default=True)]
Seed = Annotated[int, typer.Option(metavar="N", help="Source of all random draws.", min=0)]
Files = Annotated[list[Path], typer.Argument(metavar="FILE", help="Schedule files or frontier folders.")]


def main() -> None:
    """Runs the command line; an error meant for the user is one paragraph on stderr and exit code 2."""
    try:
        app()
    except SchedSearchError as error:
        sys.stdout.flush()
        typer.echo(f"error: {error}", err=True)
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - the option's callback is called by position
    if wanted:
        typer.echo(f"schedsearch {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Search schedules that make a diffusion model faster on this machine, and use them."""


@app.command()
def optimize(
    *,
    model: Model,
    budget: Annotated[str, typer.Option(metavar="B", help="How cheap it shall be: 4x, 800ms or 60%macs.")],
    max_memory: Annotated[
        str | None,
        typer.Option(metavar="M", help="Most memory for the denoiser's weights and caches, such as 8GB."),
    ] = None,
    sensitivity: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What `schedsearch sensitivity` measured, for auto to begin from."),
    ] = None,
    search: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Who proposes: auto, anneal, autodiffusion, bayes, cachequant, ecad, random or s3."
        ),
    ] = "auto",
    trials: Annotated[
        int | None, typer.Option(metavar="N", help="Stop after N measured schedules.", min=1, show_default=False)
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(metavar="N", help="Stop after N minutes of searching.", show_default=False)
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Calibration prompts, one per line, instead of the model's own."),
    ] = None,
    metric: Annotated[str, typer.Option(metavar="NAME", help="What counts as quality.")] = "psnr",
    reference: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What quality is measured against: default, the plain full run, or converged, one of many more steps.",
        ),
    ] = "default",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where the study is kept, instead of an SQLite file in the output folder."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Output folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study that is there.")] = False,
) -> None:
    """Search schedules for a model and write the best ones."""
    if trials is not None and minutes is not None:
        raise UsageError(
            f"found both --trials {trials} and --minutes {minutes:g}, expected at most one. Leave one out."
        )
    if minutes is not None and not 0 < minutes < float("inf"):
        raise UsageError(f"--minutes: found {minutes:g}, expected a number above 0.")
    from schedsearch.optimize import OptimizeSettings
    from schedsearch.optimize import optimize as run

    settings = OptimizeSettings(
        model=model,
        budget=budget,
        max_memory=max_memory,
        sensitivity=sensitivity,
        search=search,
        trials=trials,
        minutes=minutes,
        prompts=prompts,
        metric=metric,
        reference=cast("ReferenceName", reference),  # like the metric, checked where it is looked up
        device=device,
        dtype=dtype,
        seed=seed,
        storage=storage,
        out=out,
        resume=resume,
    )
    try:
        run(settings)
    except KeyboardInterrupt:
        typer.echo(f"\nstopped; what was measured is kept. Go on with: {resume_command(sys.argv)}", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def resume_command(argv: list[str]) -> str:
    """Return the command line that goes on where ``argv`` was stopped.

    >>> resume_command(["/usr/bin/schedsearch", "optimize", "--model", "my model"])
    "schedsearch optimize --model 'my model' --resume"
    """
    words = ["schedsearch", *argv[1:]]
    return shlex.join(words if "--resume" in words else [*words, "--resume"])


@app.command()
def generate(
    prompt: Annotated[list[str], typer.Argument(metavar="PROMPT", help="What to draw; one picture per prompt.")],
    *,
    model: Model,
    schedule: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A schedule file or frontier folder; the plain pipeline without it."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="B", help="Which schedule of a frontier folder: 4x, 800ms or 60%macs.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Steps of the plain pipeline; a schedule has its own.", min=1, show_default=False
        ),
    ] = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures.")] = Path("images"),
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Draw pictures, with a schedule or without."""
    for index, text in enumerate(prompt):
        if not text.strip():
            raise UsageError(f"PROMPT[{index}]: found an empty text, expected words. Leave it out.")
    if budget is not None and schedule is None:
        raise UsageError(f"--budget: found {budget!r} without --schedule, expected a frontier folder to choose from.")
    if steps is not None and schedule is not None:
        raise UsageError(f"--steps: found {steps} beside --schedule, which has its own steps. Leave one out.")
    from contextlib import nullcontext

    from schedsearch import runtime
    from schedsearch._pictures import slug, write_new
    from schedsearch.evaluate import Workload, find_card, initial_latents, load_pipeline, pipeline_kwargs

    card = find_card(model)
    pipe = load_pipeline(card, device=device, dtype=dtype)
    workload = Workload.from_card(card)
    out.mkdir(parents=True, exist_ok=True)
    applied: Any = nullcontext() if schedule is None else runtime.apply(pipe, schedule, budget=budget)
    with applied as handle:
        steps = steps if handle is None else handle.schedule.n_steps
        for index, text in enumerate(prompt):
            # The noise belongs to (seed, index), so the same call with and without a schedule draws the same picture.
            noise = initial_latents(
                pipe, workload, seed=seed, indices=[index], device=pipe.device, dtype=pipe.transformer.dtype
            )
            kwargs = pipeline_kwargs(workload, prompt=text, latents=noise, steps=steps, output_type="pil")
            image = pipe(**kwargs)[0][0]
            typer.echo(f"Wrote {write_new(image, out, f'{index:03d}-{slug(text)}')}")


@app.command()
def show(files: Files) -> None:
    """Draw schedules, or the table of a frontier folder."""
    from schedsearch import _draw
    from schedsearch.schedule import read_schedule

    console = _console()
    for index, path in enumerate(files):
        if index:
            console.print()
        if path.is_dir():
            console.print(_draw.frontier_table(_frontier_entries(path)))
        else:
            console.print(_draw.drawing(read_schedule(path), str(path)))


@app.command()
def validate(files: Files) -> None:
    """Check schedule files against every rule of the format."""
    from schedsearch.schedule import read_schedule

    bad = 0
    for path in files:
        try:
            entries = _frontier_entries(path) if path.is_dir() else [(str(path), read_schedule(path))]
        except SchedSearchError as error:
            bad += 1
            sys.stdout.flush()
            typer.echo(f"error: {error}", err=True)
            continue
        for name, schedule in entries:
            typer.echo(f"ok {schedule.id} {path / name if path.is_dir() else name}")
    if bad:
        raise typer.Exit(EXIT_ERROR)


def _frontier_entries(folder: Path) -> list[tuple[str, Any]]:
    """Read a frontier folder: file name and schedule, in the order of its index."""
    from schedsearch.schedule import read_frontier

    index = read_frontier(folder)
    return [(entry.file, index.load(entry)) for entry in index.entries]


@app.command()
def models() -> None:
    """List the models and whether their weights are at hand."""
    from schedsearch._draw import models_table
    from schedsearch.evaluate import cards

    rows = []
    for card, at_hand, _ in cards():
        run = f"{card.width}x{card.height} px, {card.steps} steps"
        had = "yes" if at_hand else f"no; {_how_to_get(card)}"
        rows.append((card.name, card.weights, had, run, at_hand))
    console = _console()
    console.print(models_table(rows))
    console.print("\nAny local folder or hub id of a FLUX-type pipeline works as --model, too.", style="dim")


def _how_to_get(card: Any) -> str:
    accept = f"accept the licence at {card.page}, then " if card.gated else ""
    return f"{accept}run `{card.download}`"


def _console() -> Console:
    from rich.console import Console

    # What goes into a file or a pipe is not folded: ids and paths stay whole.
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


if __name__ == "__main__":
    main()
