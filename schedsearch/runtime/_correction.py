"""Puts a schedule's corrections of predicted values (FORMAT.md M17) beside the sites of its plan.

Whether a correction fits is known from the denoiser's layout alone, before anything runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from safetensors.torch import load
from torch import Tensor, nn

from schedsearch.errors import ApplyError, ModelMismatchError
from schedsearch.runtime._plan import Site
from schedsearch.runtime._topology import denoiser_of, topology_of
from schedsearch.schedule import CORRECTION, MODEL_ROW, Schedule, corrected_row


def value_shape(pipe: object, row: str) -> tuple[int, int]:
    """Returns how many streams the value of a row has, and how many channels each.

    Args:
        pipe: the pipeline.
        row: ``model``, a block or a component of its denoiser.
    """
    topology, denoiser = topology_of(pipe), denoiser_of(pipe)
    if row == MODEL_ROW:
        return 1, _width(denoiser.get_submodule(topology.output))
    blocks = next(blocks for blocks in topology.lists if row.startswith(f"{blocks.name}."))
    component = ".".join(row.split(".")[2:])
    streams = len(blocks.streams) if not component or component in blocks.paired else 1
    own = _width(denoiser.get_submodule(row)) if component else 0
    return streams, own or int(getattr(denoiser, topology.width))


def _width(module: nn.Module) -> int:
    """Output channels of a linear layer, adapters around it included; 0 for other modules."""
    return int(cast("Any", getattr(module, "out_features", 0)))


def check_shapes(pipe: object, schedule: Schedule) -> None:
    """Refuses corrections that do not fit the values of their rows; all rows are those of the denoiser.

    Raises:
        ApplyError: their numbers are not at hand.
        ModelMismatchError: with the tensor, its shape and that of the row's values.
    """
    for tensor in schedule.tables.tensors if schedule.tables is not None else ():
        row = corrected_row(tensor.name)
        if row is None:
            continue
        if schedule.tables is None or schedule.tables.data is None:
            raise ApplyError(
                f"tables: found no data for {tensor.name}, expected the .safetensors file that belongs to the "
                "schedule. Copy it beside the schedule, and read the schedule from there."
            )
        streams, channels = value_shape(pipe, row)
        expected = (schedule.n_steps, streams, 2, channels)
        if tensor.shape != expected:
            raise ModelMismatchError(
                f"tables.tensors.{tensor.name}: found shape {list(tensor.shape)}, expected {list(expected)}: {streams} "
                f"streams of {channels} channels is what {row} gives here. Fit the correction for this model."
            )


def correction_tensors(schedule: Schedule, sites: Sequence[Site]) -> dict[int, Tensor]:
    """Returns the correction of every site that has one, `(n_steps, streams, 2, channels)` float32, by its number."""
    tables = schedule.tables
    corrected = {number: site.row for number, site in enumerate(sites) if any(site.corrected)}
    if not corrected or tables is None or tables.data is None:
        return {}
    tensors = load(tables.data)
    return {number: tensors[f"{row}.{CORRECTION}"] for number, row in corrected.items()}
