"""Fits the tables of low-bit layers under a policy and packs them into a schedule.

Inputs are recorded while the schedule runs in the model's own dtype; each layer is then fitted on its own
(`schedsearch.quantize.fit_tables`). Where the policy says so, the final latents decide which kinds of tables are kept:
none, or smoothing, or with it learned rounding, or with these the bias. Static scales of inputs, where the policy wants
them, are there in any case: they save time, not error.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from schedsearch.errors import UsageError
from schedsearch.evaluate._latent_errors import LatentErrors
from schedsearch.evaluate._layer_inputs import MAX_BYTES, LayerInputs, record_inputs
from schedsearch.evaluate._policy import CalibrationPolicy
from schedsearch.evaluate._reference import PairedRuns
from schedsearch.evaluate._workload import Pipeline, Workload
from schedsearch.quantize import (
    TOOLS,
    activation_scales,
    block_of,
    fit_tables,
    format_of,
    is_base,
    static_scale,
    step_scales,
)
from schedsearch.runtime import denoiser_of
from schedsearch.runtime._precision import linears_of, rules_of
from schedsearch.schedule import MAX_SIDE_BYTES, PrecisionRule, Schedule, SideTensor, with_layer_tables

_NAMES: Mapping[torch.dtype, str] = {torch.float32: "F32", torch.uint8: "U8"}
_HEADER_BYTES = 200
"""Room in a side file for one tensor's entry."""

LayerErrors = tuple[tuple[str, float], ...]
Fitted = dict[str, dict[str, Tensor]]

SCALE = "activation_scale"
UNSMOOTHED = "activation_scale without smooth"
"""Of a layer's fitted tensors, the scales that belong to its input as it is; `SCALE` are those of the smoothed one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A schedule with its tables.

    Attributes:
        schedule: it, without the measurements of the one without tables.
        policy: under which they were fitted.
        layers: per layer the mean squared output error ``plain`` and after each tool that was tried, on judging rows.
        tools: which kinds of tables were kept.
        errors: mean latent error on the calibration prompts against the same schedule in the model's own dtype, for
            each number of kinds that was tried, none first; empty where layers decide.
        left_out: layers whose inputs no step showed.
    """

    schedule: Schedule
    policy: CalibrationPolicy
    layers: Mapping[str, LayerErrors]
    tools: tuple[str, ...]
    errors: tuple[float, ...]
    left_out: tuple[str, ...]

    def count(self, tool: str) -> int:
        """Return how many layers have this kind of table."""
        tables = self.schedule.tables
        return sum(t.name.endswith(f".{tool}") for t in tables.tensors) if tables is not None else 0


def plain_schedule(schedule: Schedule) -> Schedule:
    """Return the schedule in the model's own dtype: without precision rules, tables of layers and measurements."""
    return replace(with_layer_tables(schedule, {}, role=""), precision=(), measured=())


def calibrate(
    pipe: Pipeline,
    workload: Workload,
    schedule: Schedule,
    prompts: Sequence[str],
    policy: CalibrationPolicy,
    *,
    seed: int = 0,
    batch: int = 8,
    max_bytes: int = MAX_BYTES,
    on_progress: Callable[[int, int], None] | None = None,
) -> Calibrated:
    """Return ``schedule`` with tables for its low-bit layers, in place of those it had.

    Learned rounding is left out where its bits, one per weight, would not fit into a side file.

    Args:
        pipe: the pipeline, without a schedule applied.
        workload: how it is called.
        schedule: one with precision rules.
        prompts: calibration prompts, of which the policy takes its number.
        policy: how.
        seed: of the noise and of the rows that are kept.
        batch: images per call.
        max_bytes: memory for rows; less takes more runs.
        on_progress: called with the layers fitted and in all.

    Raises:
        UsageError: no rule of the schedule asks for a low-bit format of a layer that the policy covers, or there are
            fewer prompts than it asks for.
    """
    if len(prompts) < policy.prompts:
        raise UsageError(f"calibration: found {len(prompts)} prompts, expected the {policy.prompts} of {policy.name}.")
    prompts = tuple(prompts[: policy.prompts])
    plain = plain_schedule(schedule)
    linears, rules = low_bit(pipe, schedule, policy)
    tools = fitting_tools({name: linears[name] for name in rules})
    runs = PairedRuns(pipe, workload, prompts, seed=seed, batch=batch)
    tables: Fitted = {}
    errors: dict[str, LayerErrors] = {}
    for group in record_inputs(runs, plain, tuple(rules), policy, seed=seed, max_bytes=max_bytes):
        for name, inputs in group.items():
            tables[name], errors[name] = _fitted(linears[name], rules[name], inputs, tools)
            tables[name] |= static_tables(rules[name], inputs, policy, tables[name].get("smooth"))
            if on_progress is not None:
                on_progress(len(errors), len(rules))
    bare = replace(with_layer_tables(schedule, {}, role=""), measured=())
    tried = [packed(bare, tables, tools[:n], policy) for n in range(len(tools) + 1)]
    found: tuple[float, ...] = ()
    kept = len(tools)
    if policy.decides == "latent_error":
        latents = LatentErrors(runs, base=plain)
        found = tuple(statistics.fmean(latents.of(one)) for one in tried)
        kept = min(range(len(found)), key=found.__getitem__)
    return Calibrated(
        schedule=tried[kept],
        policy=policy,
        layers=errors,
        tools=tools[:kept],
        errors=found,
        left_out=tuple(name for name in rules if name not in errors),
    )


def low_bit(
    pipe: Pipeline, schedule: Schedule, policy: CalibrationPolicy
) -> tuple[dict[str, nn.Linear], dict[str, PrecisionRule]]:
    """Return the denoiser's linear layers, and the rules of those that are in few bits and that the policy covers.

    Raises:
        UsageError: there are none.
    """
    linears = linears_of(denoiser_of(pipe))
    rules = {
        name: rule
        for name, rule in rules_of(tuple(linears), schedule.precision).items()
        if not is_base(rule, linears[name].weight.dtype) and policy.covers(name)
    }
    if not rules:
        raise UsageError(
            f"calibration: found {len(schedule.precision)} precision rules and no low-bit layer among {policy.layers}, "
            "expected one or more. Give the schedule rules, for instance with --precision int4/int8."
        )
    return linears, rules


def fitting_tools(linears: Mapping[str, nn.Linear]) -> tuple[str, ...]:
    """Return the tools whose tables fit into a side file for these layers: all, or all but learned rounding."""
    bits = sum(linear.out_features * -(-linear.in_features // 8) for linear in linears.values())
    rest = sum(4 * (linear.out_features + linear.in_features) + 3 * _HEADER_BYTES for linear in linears.values())
    return TOOLS if bits + rest <= MAX_SIDE_BYTES else tuple(tool for tool in TOOLS if tool != "rounding")


def _fitted(
    linear: nn.Linear, rule: PrecisionRule, inputs: LayerInputs, tools: Sequence[str]
) -> tuple[dict[str, Tensor], LayerErrors]:
    place = linear.weight.device
    made = fit_tables(
        linear,
        rule,
        inputs.rows.to(place),
        largest=inputs.statistics.largest().to(place),
        judge=inputs.judged.to(place) if len(inputs.judged) else None,
        tools=tools,
    )
    return {tool: tensor.cpu() for tool, tensor in made.tables.items()}, made.errors


def static_tables(
    rule: PrecisionRule, inputs: LayerInputs, policy: CalibrationPolicy, smooth: Tensor | None
) -> dict[str, Tensor]:
    """Return the scales of a layer's input under `SCALE`, and as they are without smoothing under `UNSMOOTHED`; nothing
    where the policy or the format has none.
    """
    fmt = format_of(rule.activation)
    if policy.scales == "dynamic" or fmt.is_cast or block_of(fmt, activation_scales(fmt, rule.scales)):
        return {}

    def found(divisor: Tensor | None) -> Tensor:
        samples = [[part if divisor is None else part / divisor for part in parts] for parts in inputs.by_step()]
        if policy.scales == "static":
            return static_scale([part for parts in samples for part in parts], fmt)
        return step_scales(samples, fmt)

    return {SCALE: found(smooth), UNSMOOTHED: found(None)}


def packed(
    schedule: Schedule, tables: Mapping[str, Mapping[str, Tensor]], tools: Sequence[str], policy: CalibrationPolicy
) -> Schedule:
    """Return ``schedule`` with these layers' tables, as far as their kind is among ``tools``, and static scales."""
    tensors: dict[str, SideTensor] = {}
    for name, own in tables.items():
        kept = {tool: tensor for tool, tensor in own.items() if tool in tools}
        scale = own.get(SCALE if "smooth" in tools else UNSMOOTHED)
        if scale is not None:
            kept[SCALE] = scale
        for tool, tensor in kept.items():
            tensors[f"{name}.{tool}"] = SideTensor(
                dtype=_NAMES[tensor.dtype],
                shape=tuple(tensor.shape),
                raw=tensor.contiguous().numpy().tobytes(),
            )
    return with_layer_tables(schedule, tensors, role=policy.text)
