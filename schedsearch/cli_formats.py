"""The verbs about number formats: how much each layer and block matters, and tables for low-bit layers.

Like those of `schedsearch.cli`, they import what they need when they run.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from schedsearch import _terminal
from schedsearch.cli_options import (
    FORMATS,
    POLICIES,
    SCALES,
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

Batch = Annotated[int, typer.Option(metavar="N", help="Images per call.", min=1)]
HeldOut = Annotated[int, typer.Option("--held-out", metavar="N", help="Held-out prompts to compare on.", min=1)]
Formats = Annotated[
    str,
    typer.Option(
        metavar="WORDS",
        help="Formats a layer may take, separated by commas: WEIGHT, behind it /ACTIVATION, @SCALES and +RANK "
        "where wanted; without an activation that of --activation.",
        autocompletion=some_of(FORMATS),
    ),
]
Activation = Annotated[
    str | None,
    typer.Option(
        metavar="WORD",
        help="Format of the inputs.",
        show_default="the model's own dtype",
        autocompletion=one_of(FORMATS),
    ),
]
Carrier = Annotated[
    str,
    typer.Option(metavar="N|FILE", help="Measure changes on this many plain steps, or on this schedule, to save time."),
]
Subsets = Annotated[
    int, typer.Option(metavar="N", help="Random sets of changes of each kind, to see if effects add up.", min=0)
]
Latencies = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A table of `schedsearch profile`, for effects per saved millisecond."),
]


def sensitivity(
    *,
    model: Model,
    formats: Formats = "fp16,int8,int6,int5,int4,int3,int2",
    activation: Activation = None,
    bits: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Bits at which mixed and uniform formats are compared.")
    ] = "8,6,5,4",
    ranks: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Ranks of the low-rank branch beside the fewest of these bits.")
    ] = "0",
    blocks: Annotated[bool, typer.Option("--blocks/--no-blocks", help="Remove each block, too.")] = True,
    carrier: Carrier = "7",
    prompts: Annotated[int, typer.Option(metavar="N", help="Calibration prompts to measure on.", min=1)] = 4,
    held_out: HeldOut = 16,
    subsets: Subsets = 32,
    latencies: Latencies = None,
    seed: Seed = 0,
    batch: Batch = 8,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The measurements; what it has is kept.",
            show_default="runs/sensitivity-MODEL.json",
        ),
    ] = None,
    into: Into = None,
    as_json: Json = False,
) -> None:
    """Measure what each layer in each format, and each removed block, does to the result; choose mixed formats.

    Prints a ranking, whether effects add up, and mixed against uniform formats at equal average bits.
    """
    from schedsearch.bench import SensitivitySettings, run_sensitivity
    from schedsearch.optimize import Display

    display = Display()
    with kept_work():
        written = run_sensitivity(
            SensitivitySettings(
                model=model,
                formats=formats,
                activation=activation,
                bits=bits,
                ranks=ranks,
                blocks=blocks,
                prompts=prompts,
                held_out=held_out,
                carrier=carrier,
                subsets=subsets,
                latencies=latencies,
                seed=seed,
                batch=batch,
                device=device,
                dtype=dtype,
                out=out,
                into=into,
                command=shlex.join(["schedsearch", *sys.argv[1:]]),
            ),
            display,
        )
    if as_json:
        _terminal.print_json("sensitivity", path=written, tables=display.tables)


def calibrate(
    *,
    model: Model,
    schedule: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A schedule file.", show_default="the full run")
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            metavar="WORD",
            help="One format for all layers, such as int4/int8, in place of the schedule's precision rules.",
        ),
    ] = "",
    protect: Annotated[
        bool,
        typer.Option("--protect", help="With --precision: keep time embedding, adaLN, first and last layers."),
    ] = False,
    policy: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="all-steps, near-image or last-step; all compares them.",
            autocompletion=one_of(POLICIES),
        ),
    ] = "all-steps",
    prompts: Annotated[
        int | None,
        typer.Option(metavar="N", help="Calibration prompts.", min=1, show_default="the policy's own"),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(metavar="N", help="Rows per layer.", min=1, show_default="the policy's own"),
    ] = None,
    scales: Annotated[
        str,
        typer.Option(
            metavar="WORD",
            help="Scales of low-bit inputs: dynamic, static or per-step.",
            autocompletion=one_of(SCALES),
        ),
    ] = "dynamic",
    held_out: HeldOut = 16,
    seed: Seed = 0,
    batch: Batch = 8,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The schedule.", show_default="runs/calibrated-MODEL.json"),
    ] = None,
    into: Into = None,
    as_json: Json = False,
) -> None:
    """Fit smoothing, rounding and biases for a schedule's low-bit layers, and write it with these tables."""
    from schedsearch.bench import CalibrateSettings, run_calibrate
    from schedsearch.optimize import Display

    display = Display()
    written = run_calibrate(
        CalibrateSettings(
            model=model,
            schedule=schedule,
            precision=precision,
            protect=protect,
            policy=policy,
            prompts=prompts,
            rows=rows,
            scales=scales,
            held_out=held_out,
            seed=seed,
            batch=batch,
            device=device,
            dtype=dtype,
            out=out,
            into=into,
        ),
        display,
    )
    if as_json:
        _terminal.print_json("calibrate", paths=written, tables=display.tables)
