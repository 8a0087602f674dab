"""The records a schedule is made of, as frozen dataclasses: what each field means, in memory.

They carry no rules of their own: a `Schedule` checks its parts when it is built, because only then is it known where in
the schedule a bad value stands.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Solver:
    """How one step goes from ``sigma[i]`` to ``sigma[i + 1]``.

    Attributes:
        family: one of `FAMILIES`.
        order: order of accuracy asked for, 1..4; clipped to the history that exists at run time.
        prediction: quantity the update is written in, one of `PREDICTIONS`.
        corrector: one of `CORRECTORS`; ``implicit`` costs one more denoiser evaluation.
    """

    family: str = "euler"
    order: int = 1
    prediction: str = "velocity"
    corrector: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRule:
    """Number formats for the modules whose dotted name matches ``pattern`` (a glob); the first match wins."""

    pattern: str
    weight: str
    activation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TableTensor:
    """One named tensor of the side file: its ``shape``, safetensors ``dtype`` and what it is for (``role``)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The ``.safetensors`` file beside the schedule (a bare file name) and the hash of its bytes."""

    file: str
    sha256: str
    tensors: tuple[TableTensor, ...]


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
