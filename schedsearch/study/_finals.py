"""What a study remembers of its last stage: the runs that were measured on held-out prompts. Measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schedsearch.schedule import Measurement
from schedsearch.study._study import Study

_NOTE = "finals "


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """One run that was measured on held-out prompts.

    Attributes:
        name: a schedule's measured speed-up, such as ``4.12x``; ``full``, or such as ``7 steps``.
        kind: ``full``, ``schedule`` or ``fewer steps``.
        steps: denoising steps.
        denoiser_calls: per image, counted.
        measured: the numbers.
    """

    name: str
    kind: str
    steps: int
    denoiser_calls: float
    measured: tuple[Measurement, ...]


def speed_labels(speedups: Sequence[float]) -> tuple[str, ...]:
    """Return labels such as ``4.12x``, told apart where two are equal.

    >>> speed_labels([4.04, 4.036, 2.0])
    ('4.04x', '4.04x-2', '2.00x')
    """
    labels: list[str] = []
    for speedup in speedups:
        label, n = f"{speedup:.2f}x", 2
        while label in labels:
            label, n = f"{speedup:.2f}x-{n}", n + 1
        labels.append(label)
    return tuple(labels)


def measured_runs(study: Study) -> tuple[MeasuredRun, ...]:
    """Return the runs of the latest last stage, the plain run first; none while the study is unfinished."""
    made = [name for name in study.notes if name.startswith(_NOTE)]
    if not made:
        return ()
    note: Any = study.notes[max(made, key=lambda name: int(name.removeprefix(_NOTE)))]
    runs = [
        MeasuredRun(
            name=row["name"],
            kind=row["kind"],
            steps=row["steps"],
            denoiser_calls=row["denoiser_calls"],
            measured=tuple(Measurement(**record) for record in row["measured"]),
        )
        for row in note["rows"]
    ]
    schedules = [run for run in runs if run.kind == "schedule"]
    labels = dict(zip((run.name for run in schedules), speed_labels([_speedup(run) for run in schedules]), strict=True))
    return tuple(
        MeasuredRun(
            name=labels.get(run.name, run.name),
            kind=run.kind,
            steps=run.steps,
            denoiser_calls=run.denoiser_calls,
            measured=run.measured,
        )
        for run in runs
    )


def _speedup(run: MeasuredRun) -> float:
    return next(record.value for record in run.measured if record.metric == "speedup")
