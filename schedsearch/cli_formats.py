"""The verbs about number formats: how much each layer and block matters, and tables for low-bit layers.

Like those of `schedsearch.cli`, they import what they need when they run.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Option(metavar="NAME", help="A name that `schedsearch models` lists, a local folder, or a hub id."),
]
Device = Annotated[str, typer.Option(metavar="D", help="cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option(metavar="T", help="float32, bfloat16 or float16.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Source of all random draws.", min=0)]
Batch = Annotated[int, typer.Option(metavar="N", help="Images per call.", min=1)]
HeldOut = Annotated[int, typer.Option("--held-out", metavar="N", help="Held-out prompts to compare on.", min=1)]
Into = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Put the tables between the markers of this Markdown file.")
]


def sensitivity(
    *,
    model: Model,
    formats: Annotated[
        str,
        typer.Option(
            metavar="WORDS",
            help="Formats a layer may take, separated by commas: WEIGHT[/ACTIVATION][@SCALES][+RANK]; without an "
            "activation that of --activation.",
        ),
    ] = "fp16,int8,int6,int5,int4,int3,int2",
    activation: Annotated[
        str | None, typer.Option(metavar="WORD", help="Format of the inputs. [default: the model's own dtype]")
    ] = None,
    bits: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Bits at which mixed and uniform formats are compared.")
    ] = "8,6,5,4",
    ranks: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Ranks of the low-rank branch beside the fewest of these bits.")
    ] = "0",
    blocks: Annotated[bool, typer.Option("--blocks/--no-blocks", help="Remove each block, too.")] = True,
    carrier: Annotated[
        str,
        typer.Option(
            metavar="N|FILE", help="Measure changes on this many plain steps, or on this schedule, to save time."
        ),
    ] = "7",
    prompts: Annotated[int, typer.Option(metavar="N", help="Calibration prompts to measure on.", min=1)] = 4,
    held_out: HeldOut = 16,
    subsets: Annotated[
        int, typer.Option(metavar="N", help="Random sets of changes of each kind, to see if effects add up.", min=0)
    ] = 32,
    latencies: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A table of `schedsearch profile`, for effects per saved millisecond."),
    ] = None,
    seed: Seed = 0,
    batch: Batch = 8,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The measurements; what it has is kept. [default: runs/sensitivity-MODEL.json]"
        ),
    ] = None,
    into: Into = None,
) -> None:
    """Measure what each layer in each format, and each removed block, does to the result; choose mixed formats.

    Prints a ranking, whether effects add up, and mixed against uniform formats at equal average bits.
    """
    from schedsearch.bench import SensitivitySettings, run_sensitivity

    run_sensitivity(
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
        )
    )


def calibrate(
    *,
    model: Model,
    schedule: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A schedule file. [default: the full run]")
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
        str, typer.Option(metavar="NAME", help="all-steps, near-image or last-step; all compares them.")
    ] = "all-steps",
    prompts: Annotated[
        int | None,
        typer.Option(metavar="N", help="Calibration prompts. [default: the policy's own]", min=1, show_default=False),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(metavar="N", help="Rows per layer. [default: the policy's own]", min=1, show_default=False),
    ] = None,
    scales: Annotated[
        str, typer.Option(metavar="WORD", help="Scales of low-bit inputs: dynamic, static or per-step.")
    ] = "dynamic",
    held_out: HeldOut = 16,
    seed: Seed = 0,
    batch: Batch = 8,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The schedule. [default: runs/calibrated-MODEL.json]")
    ] = None,
    into: Into = None,
) -> None:
    """Fit smoothing, rounding and biases for a schedule's low-bit layers, and write it with these tables."""
    from schedsearch.bench import CalibrateSettings, run_calibrate

    run_calibrate(
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
        )
    )
