"""The records a schedule is made of, as frozen dataclasses: what each field means, in memory.

They carry no rules of their own: a `Schedule` checks its parts when it is built, because only then is it known where in
the schedule a bad value stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True, kw_only=True)
class Solver:
    """How one step goes from ``sigma[i]`` to ``sigma[i + 1]``.

    Attributes:
        family: one of `FAMILIES`.
        order: order of accuracy asked for, 1..4; clipped to the history that exists at run time.
        prediction: quantity the update is written in, one of `PREDICTIONS`.
        corrector: one of `CORRECTORS`; ``implicit`` costs one more denoiser evaluation.
        estimate: one of `ESTIMATES`: how derivatives are got from the history; not every family has a choice.
    """

    family: str = "euler"
    order: int = 1
    prediction: str = "velocity"
    corrector: str = "none"
    estimate: str = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRule:
    """Number formats for the linear layers whose dotted name matches ``pattern`` (a glob); the first match wins.

    Attributes:
        pattern: the glob.
        weight: one of `NUMBER_FORMATS`.
        activation: one of `NUMBER_FORMATS`.
        scales: which elements share a scale, one of `SCALES`.
        rank: rank of the branch in the model's own dtype beside the low-bit weight; 0 for none.
    """

    pattern: str
    weight: str
    activation: str
    scales: str = "default"
    rank: int = 0


def rule_of(rules: Sequence[PrecisionRule], name: str) -> PrecisionRule | None:
    """The first rule whose pattern matches the layer ``name``; `None` leaves the layer as it is."""
    return next((rule for rule in rules if fnmatchcase(name, rule.pattern)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableTensor:
    """One named tensor of the side file: its ``shape``, safetensors ``dtype`` and what it is for (``role``)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """What the ``.safetensors`` file beside the schedule holds.

    Attributes:
        sha256: hash of its bytes.
        tensors: what is in it, in natural order of the names.
        data: its bytes; ``None`` if the file was not at hand. Neither compared nor part of the id, which has the hash.
    """

    sha256: str
    tensors: tuple[TableTensor, ...]
    data: bytes | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """The denoiser a schedule was made for.

    Attributes:
        pipeline: class name of the pipeline, such as ``FluxPipeline``.
        config: SHA-256 (hex) of the denoiser's configuration.
        blocks: SHA-256 (hex) of the ordered list of schedulable modules and their classes.
        height: pixels searched at.
        width: pixels searched at.
        batch: images per call searched at.
        adapters: names of the adapters (LoRA) that were loaded, sorted.
    """

    pipeline: str
    config: str
    blocks: str
    height: int
    width: int
    batch: int = 1
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measured number and what it was measured on; never part of the id.

    Attributes:
        metric: such as ``speedup``, ``latency_ms``, ``psnr``.
        unit: such as ``x``, ``ms``, ``dB``.
        better: ``min`` or ``max``.
        value: the median for times, the mean over prompts for quality.
        low: lower end of the spread (10 % quantile), or the value itself.
        high: upper end of the spread (90 % quantile), or the value itself.
        n: how many samples stand behind the value.
        prompts: name and hash of the prompt set, such as ``held-out sha256:…``.
        device: the machine in words.
        dtype: such as ``float32``.
        batch: images per call.
        created_by: program and version that measured.
        date: ISO day, or empty.
    """

    metric: str
    unit: str
    better: str
    value: float
    low: float
    high: float
    n: int
    prompts: str = ""
    device: str = ""
    dtype: str = ""
    batch: int = 1
    created_by: str = ""
    date: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a schedule came from; never part of the id."""

    study: str = ""
    searcher: str = ""
    seed: int = 0
    ask: int = 0
    parents: tuple[str, ...] = ()
    created_by: str = ""
    note: str = ""
