"""A hand-made run folder whose numbers are known, with words that would be markup if anything forgot to escape them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from schedsearch.schedule import (
    Measurement,
    ModelRef,
    PrecisionRule,
    Provenance,
    Schedule,
    Solver,
    write_frontier,
    write_schedule,
)
from schedsearch.study import Candidate, Evaluation, Objective, Study

EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
BLOCKS = tuple(f"transformer_blocks.{i}" for i in range(4))
MODEL = ModelRef(pipeline="FluxPipeline", config="a" * 64, blocks="b" * 64, height=64, width=64)
OBJECTIVES = (
    Objective(name="latency_ms", unit="ms", better="min"),
    Objective(name="psnr", unit="dB", better="max"),
)


def plan(*sigma: float, **fields: Any) -> Schedule:
    """A schedule of Euler steps."""
    solver = fields.pop("solver", (Solver(),) * (len(sigma) - 1))
    return Schedule(sigma=sigma, solver=solver, model=MODEL, **fields)


PLAIN = plan(1.0, 0.8, 0.6, 0.4, 0.0)
REUSE = plan(1.0, 0.8, 0.6, 0.4, 0.0, ops=(("model", "CRCR"),))
RICH = plan(
    1.0, 0.7, 0.5, 0.2, 0.0,
    solver=(Solver(), Solver(family="adams", order=2), Solver(family="dpm", order=2, corrector="pseudo"), Solver()),
    ops=(
        ("model", "CCRC"),
        ("transformer_blocks.0", "CRCC"),
        ("transformer_blocks.1", "CRCC"),
        ("transformer_blocks.2", "CC1C"),
        ("transformer_blocks.2.attn", "CRCS"),
    ),
    guidance=(3.5, 3.5, None, 1.0),
    precision=(PrecisionRule(pattern="transformer_blocks.[0-1].attn.*", weight="int8", activation="int8"),),
    pruned=("transformer_blocks.3",),
)  # fmt: skip


def records() -> tuple[Evaluation, ...]:
    """Seven records; against the reference point of 400 ms and 10 dB their volumes are known by hand."""

    def record(ask: int, schedule: Schedule, values: tuple[float, float], evals: int, **more: Any) -> Evaluation:
        candidate = Candidate(schedule=schedule, searcher="auto", ask=ask, **more)
        return Evaluation(
            candidate=candidate, status="ok", values=values, fidelity=8, device="2 cores", seconds=1.5,
            denoiser_evals=evals, metrics=(("denoiser_calls", 2.0), ("macs", 5.0)), samples=(("psnr", (20.0, 30.0)),),
        )  # fmt: skip

    middle = plan(1.0, 0.5, 0.0)
    failed = Candidate(schedule=plan(1.0, 0.25, 0.0), searcher="auto", ask=6, origin="mutated", parents=(REUSE.id,))
    return (
        record(0, PLAIN, (400.0, 100.0), 28, origin="seed plain"),
        record(1, REUSE, (200.0, 30.0), 20, share=0.25, origin="seed fora/n2"),
        record(2, REUSE, (200.0, 32.0), 60, origin="first look repeated in full"),
        record(3, middle, (100.0, 25.0), 10, share=0.25, origin="mutated", parents=(REUSE.id,)),
        record(4, middle, (100.0, 24.0), 40, origin="first look repeated in full"),
        record(5, RICH, (90.0, 28.0), 40, origin="crossed", parents=(REUSE.id, middle.id)),
        Evaluation(candidate=failed, status="failed", reason="no", denoiser_evals=2),
    )


def measurement(metric: str, value: float, *, spread: float = 0.0, n: int = 1) -> Measurement:
    units = {"speedup": ("x", "max"), "latency_ms": ("ms", "min"), "psnr": ("dB", "max"), "macs_fraction": ("1", "min")}
    unit, better = units.get(metric, ("1", "max"))
    return Measurement(
        metric=metric, unit=unit, better=better, value=value, low=value - spread, high=value + spread, n=n,
        prompts="toy-held-out sha256:0123456789abcdef", device="2 cores <b>", dtype="float32",
    )  # fmt: skip


def numbers(speedup: float, psnr: float) -> list[Measurement]:
    return [
        measurement("speedup", speedup, spread=0.1, n=10),
        measurement("latency_ms", 400.0 / speedup, spread=2.0, n=10),
        measurement("macs_fraction", 1.0 / speedup),
        measurement("psnr", psnr, spread=3.0, n=64),
        measurement("ssim", 0.9, spread=0.05, n=64),
        measurement("converged_psnr", 20.0, spread=1.0, n=64),
    ]


MEASURED = {"schedule 0": (2.0, 31.5), "schedule 1": (4.25, 27.25), "schedule 2": (4.25, 22.0)}


def begin(folder: Path, *, prompts: str = "p" * 64) -> Study:
    """An empty study in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    study = Study.open(
        folder / "study.db",
        "search",
        objectives=OBJECTIVES,
        settings={
            "model": dataclasses.asdict(MODEL), "budget": "4x", "metric": "psnr", "reference": "default",
            "search": "auto", "seed": 0, "device": "2 cores", "dtype": "float32", "fidelity": 8, "prompts": prompts,
            "held_out": "h" * 64, "weights": "w" * 64,
        },
        resume=False,
    )  # fmt: skip
    study.notes.set("reference point", [400.0, 10.0])
    blocks = [{"name": name} for name in BLOCKS]
    study.notes.set("probe", json.dumps({"blocks": blocks, "sigma": [1.0, 0.8, 0.6, 0.4, 0.0]}))
    made = {"name": f"toy-4x {EVIL}", "model": "toy", "command": "schedsearch optimize --model toy --budget 4x",
            "date": "2026-01-02", "versions": {"torch": "2.0"}}  # fmt: skip
    study.notes.set("made", made)
    study.notes.set("spent probe", {"seconds": 10.0, "denoiser_evals": 100})
    return study


def finish(folder: Path, study: Study) -> None:
    """What the last stage leaves: measurements, the frontier, the schedule for the budget, pictures."""
    named = {"schedule 0": REUSE, "schedule 1": RICH}
    kinds = [("full", "full", 4, 4.0, numbers(1.0, 100.0))]
    kinds += [(name, "schedule", 4, 2.0, numbers(*values)) for name, values in MEASURED.items()]
    kinds += [
        ("2 steps", "fewer steps", 2, 2.0, numbers(2.1, 21.0)),
        ("1 steps", "fewer steps", 1, 1.0, numbers(4.0, 15.0)),
    ]
    rows = [
        {"name": name, "kind": kind, "steps": steps, "denoiser_calls": calls,
         "measured": [dataclasses.asdict(m) for m in measured]}
        for name, kind, steps, calls, measured in kinds
    ]  # fmt: skip
    study.notes.set("finals 7", {"rows": rows, "scores": {}, "tables": {}})
    written = [
        dataclasses.replace(
            schedule,
            measured=tuple(numbers(*MEASURED[name])),
            provenance=Provenance(study="toy-4x", searcher="auto", ask={"schedule 0": 2, "schedule 1": 5}[name]),
        )
        for name, schedule in named.items()
    ]
    write_frontier(folder / "frontier", written, quality="psnr", labels=("2.00x", "4.25x"))
    write_schedule(written[1], folder / "toy-4x.json")
    pictures = folder / "pictures"
    pictures.mkdir()
    runs = []
    for number, (run, colour) in enumerate(
        (("full", "red"), (REUSE.id, "tomato"), (RICH.id, "orange"), ("1 steps", "blue"))
    ):
        files = [f"{number:03d}-{i:02d}.png" for i in range(2)]
        for file in files:
            Image.new("RGB", (16, 16), colour).save(pictures / file)
        runs.append({"run": run, "files": files, "scores": [30.0 + number, 20.0 + number]})
    index = {"format": "schedsearch.pictures", "version": 1, "metric": "psnr", "width": 64, "height": 64,
             "prompts": ["a red apple", EVIL], "runs": runs}  # fmt: skip
    (pictures / "pictures.json").write_text(json.dumps(index))


@pytest.fixture(scope="session")
def run_without_end(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose search is still going on."""
    folder = tmp_path_factory.mktemp("runs") / "unfinished"
    with begin(folder) as study:
        for record in records():
            study.append(record)
    return folder


@pytest.fixture(scope="session")
def run_folder_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder."""
    folder = tmp_path_factory.mktemp("runs") / "toy-4x"
    with begin(folder) as study:
        for record in records():
            study.append(record)
        finish(folder, study)
    return folder
