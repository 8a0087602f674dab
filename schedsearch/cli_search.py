"""The verbs that search and draw: optimize and generate.

Like those of `schedsearch.cli`, they import what they need when they run.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from schedsearch import _terminal
from schedsearch.cli_options import (
    EXIT_INTERRUPTED,
    METRICS,
    REFERENCES,
    SEARCHERS,
    Budget,
    Device,
    Dtype,
    Json,
    Model,
    Seed,
    one_of,
    some_of,
    space_names,
)
from schedsearch.errors import UsageError

if TYPE_CHECKING:
    from schedsearch.evaluate import ReferenceName
    from schedsearch.optimize import Optimized

EXIT_TERMINATED = 143


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM, as a cluster does before it takes a machine back."""


MaxMemory = Annotated[
    str | None,
    typer.Option(metavar="M", help="Most memory for the denoiser's weights and caches, such as 8GB."),
]
SensitivityFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="What `schedsearch sensitivity` measured, for auto to begin from."),
]
Search = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Who proposes: auto, anneal, autodiffusion, bayes, cachequant, ecad, random or s3.",
        autocompletion=one_of(SEARCHERS),
    ),
]
Space = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="What may be searched: a shipped space, or a space file of your own.",
        show_default="the model's own",
        autocompletion=space_names,
    ),
]
Trials = Annotated[
    int | None, typer.Option(metavar="N", help="Stop after N measured schedules.", min=1, show_default=False)
]
Minutes = Annotated[
    float | None, typer.Option(metavar="N", help="Stop after N minutes of searching.", show_default=False)
]
Prompts = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Calibration prompts, one per line, instead of the model's own."),
]
Metric = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="What counts as quality; of several, separated by commas, the first decides.",
        autocompletion=some_of(METRICS),
    ),
]
Reference = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What quality is measured against: default, the plain full run, or converged, one of many more steps.",
        autocompletion=one_of(REFERENCES),
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Where the study is kept, instead of an SQLite file in the output folder."),
]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Output folder.", show_default="runs/MODEL-BUDGET")]
Watch = Annotated[
    int | None,
    typer.Option(
        metavar="PORT",
        help="Serve the report at http://127.0.0.1:PORT while the search runs; 0 takes a free port.",
        min=0,
        max=65535,
        show_default=False,
    ),
]


def optimize(
    *,
    model: Model,
    budget: Annotated[str, Budget],
    max_memory: MaxMemory = None,
    sensitivity: SensitivityFile = None,
    search: Search = "auto",
    space: Space = None,
    trials: Trials = None,
    minutes: Minutes = None,
    prompts: Prompts = None,
    metric: Metric = "psnr",
    reference: Reference = "default",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    storage: Storage = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study that is there.")] = False,
    watch: Watch = None,
    as_json: Json = False,
) -> None:
    """Search schedules for a model and write the best ones.

    Ctrl-C writes what was found so far into OUT/unfinished and says how to go on; a second one leaves at once.
    """
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
        space=space,
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
        watch=watch,
    )
    try:
        with _terminable():
            optimized = run(settings)
    except KeyboardInterrupt as error:
        typer.echo(f"\nstopped; what was measured is kept. Go on with: {resume_command(sys.argv)}", err=True)
        raise typer.Exit(EXIT_TERMINATED if isinstance(error, Terminated) else EXIT_INTERRUPTED) from None
    if as_json:
        _terminal.print_json("optimize", **_told(optimized))


def _told(optimized: Optimized) -> dict[str, Any]:
    """What ``optimize --json`` says."""
    results = [
        {
            "name": result.name,
            "kind": result.kind,
            "steps": result.steps,
            "denoiser_calls": result.denoiser_calls,
            "id": None if result.schedule is None else result.schedule.id,
            "measured": result.measured,
        }
        for result in optimized.results
    ]
    chosen = optimized.chosen
    return {
        "chosen": None if chosen is None else chosen.name,
        "results": results,
        "written": optimized.written,
    }


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM end the block like Ctrl-C, where that can be arranged."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def resume_command(argv: list[str]) -> str:
    """Return the command line that goes on where ``argv`` was stopped.

    >>> resume_command(["/usr/bin/schedsearch", "optimize", "--model", "my model"])
    "schedsearch optimize --model 'my model' --resume"
    """
    words = ["schedsearch", *argv[1:]]
    return shlex.join(words if "--resume" in words else [*words, "--resume"])


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
    as_json: Json = False,
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
    drawn: list[dict[str, object]] = []
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
            path = write_new(image, out, f"{index:03d}-{slug(text)}")
            drawn.append({"prompt": text, "path": path})
            if _terminal.talk_of() > _terminal.Talk.QUIET:
                typer.echo(f"Wrote {path}", err=as_json)
    if as_json:
        _terminal.print_json("generate", pictures=drawn)
