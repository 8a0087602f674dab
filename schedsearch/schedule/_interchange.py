"""Schedule files of other programs: ECAD's and SmoothCache's JSON, both ways.

Neither names a sampler or a model, so the caller states both on import. What those formats cannot say is refused on
export, never dropped. This module does not know how either program runs its files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

from schedsearch.errors import ScheduleFormatError
from schedsearch.schedule import _json
from schedsearch.schedule._checks import integer, join, module_name, quote
from schedsearch.schedule._model import Schedule
from schedsearch.schedule._parts import ModelRef, Provenance, Solver
from schedsearch.schedule._vocabulary import COMPUTE, MAX_NAME, MAX_ROWS, MAX_STEPS, MODEL_ROW, REUSE

Names: TypeAlias = Mapping[str, str]

DOUBLE = "transformer_blocks"
SINGLE = "single_transformer_blocks"
ECAD_FLUX: Names = MappingProxyType({"full_attn": "attn", "full_ff": "ff", "full_ff_context": "ff_context"})
ECAD_SINGLE: Names = MappingProxyType(
    {"single_attn": "attn", "single_proj_mlp": "proj_mlp", "single_proj_out": "proj_out"}
)
ECAD_PIXART: Names = MappingProxyType({"attn1": "attn1", "attn2": "attn2", "ff": "ff"})
SMOOTHCACHE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"attn": ("attn",), "attn1": ("attn1",), "attn2": ("attn2",), "mlp": ("ff",), "ff": ("ff",)}
)
"""Layer types of SmoothCache's files -> components of a block; a component that a block lacks makes no row."""


def from_ecad(
    data: bytes | str, *, model: ModelRef, sigma: Sequence[float], solver: Sequence[Solver] | None = None
) -> Schedule:
    """The schedule in an ECAD file (true = recompute), as component rows.

    A component that is cached before it ever ran is computed, as ECAD itself does. Its metrics are not taken over: they
    were measured elsewhere.

    Args:
        data: the file.
        model: the denoiser it is for.
        sigma: `(n_steps + 1,)` noise levels, which the file does not state.
        solver: `(n_steps,)`; Euler by default.

    Raises:
        ScheduleFormatError: if the file is not of that layout or does not fit ``sigma``.
    """
    document = _json.parse(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
    top = _json.members(
        "", document, known=("cache_schedule", "config", "metrics"), required=("cache_schedule",), rule="R22"
    )
    here = "cache_schedule"
    needed = ("num_blocks", "num_inference_steps", "schedule")
    head = _json.members(
        here, top["cache_schedule"], known=(*needed, "num_single_blocks", "name", "attributes"), required=needed,
        rule="R22",
    )  # fmt: skip
    n_steps = integer(f"{here}.num_inference_steps", head["num_inference_steps"], 1, MAX_STEPS, "R22")
    _same_length(f"{here}.num_inference_steps", n_steps, sigma)
    singles = integer(f"{here}.num_single_blocks", head.get("num_single_blocks", 0), 0, MAX_ROWS // 6, "R22")
    doubles = integer(f"{here}.num_blocks", head["num_blocks"], 0, MAX_ROWS // 6, "R22")
    rows = _ecad_rows(f"{here}.schedule", head["schedule"], n_steps, doubles, singles)
    return _schedule(rows, model, sigma, solver, origin="ECAD", name=head.get("name"))


def _ecad_rows(path: str, value: object, n_steps: int, doubles: int, singles: int) -> dict[str, str]:
    steps = [f"{step:03d}" for step in range(n_steps)]
    table = _json.members(path, value, known=steps, required=steps, rule="R22")
    blocks = [*(str(i) for i in range(doubles)), *(f"single_{i}" for i in range(singles))]
    chars: dict[str, list[str]] = {}
    layout: Names | None = None
    for step in steps:
        entry = _json.members(f"{path}.{step}", table[step], known=blocks, required=blocks, rule="R22")
        for block in blocks:
            here = f"{path}.{step}.{block}"
            single = block.startswith("single_")
            if not single and layout is None:
                first = entry[block]
                layout = ECAD_PIXART if isinstance(first, dict) and "attn1" in first else ECAD_FLUX
            names = ECAD_SINGLE if single or layout is None else layout
            flags = _json.members(here, entry[block], known=list(names), required=list(names), rule="R22")
            prefix = f"{SINGLE}.{block[7:]}" if single else f"{DOUBLE}.{block}"
            for theirs, ours in names.items():
                flag = flags[theirs]
                if not isinstance(flag, bool):
                    raise ScheduleFormatError(
                        f"{here}.{theirs}", found=quote(flag), expected="true (recompute) or false", rule="R22"
                    )
                row = chars.setdefault(f"{prefix}.{ours}", [])
                row.append(COMPUTE if flag or not row else REUSE)
    return {name: "".join(row) for name, row in chars.items()}


def to_ecad(schedule: Schedule, *, double_blocks: int, single_blocks: int, name: str = "schedsearch") -> str:
    """The text of an ECAD file for a FLUX model with that many blocks.

    Raises:
        ScheduleFormatError: if the schedule holds anything but component rows of ``C`` and ``R``.
    """
    known = {
        f"{stem}.{i}.{ours}"
        for stem, count, names in ((DOUBLE, double_blocks, ECAD_FLUX), (SINGLE, single_blocks, ECAD_SINGLE))
        for i in range(count)
        for ours in names.values()
    }
    _refuse_other_parts(schedule, "ECAD's", "R22")
    for row_name, row in schedule.ops:
        _only_reuse(row_name, row, known, "a component of the blocks stated", "R22")
    steps = {}
    for step in range(schedule.n_steps):
        entry: dict[str, dict[str, bool]] = {}
        for stem, count, key, names in (
            (DOUBLE, double_blocks, "", ECAD_FLUX),
            (SINGLE, single_blocks, "single_", ECAD_SINGLE),
        ):
            for i in range(count):
                entry[f"{key}{i}"] = {
                    theirs: schedule.row(f"{stem}.{i}.{ours}")[step] == COMPUTE for theirs, ours in names.items()
                }
        steps[f"{step:03d}"] = entry
    head = {
        "num_blocks": double_blocks,
        "num_single_blocks": single_blocks,
        "num_inference_steps": schedule.n_steps,
        "name": name,
        "attributes": {},
        "schedule": steps,
    }
    config = {"height": schedule.model.height, "width": schedule.model.width}
    return json.dumps({"cache_schedule": head, "config": config}, indent=1) + "\n"


def from_smoothcache(
    data: bytes | str,
    *,
    model: ModelRef,
    sigma: Sequence[float],
    components: Sequence[str],
    solver: Sequence[Solver] | None = None,
    layers: Mapping[str, Sequence[str]] = SMOOTHCACHE,
) -> Schedule:
    """The schedule in a SmoothCache file (one list of 0 and 1 per layer type, 1 = compute), as component rows.

    Args:
        data: the file.
        model: the denoiser it is for.
        sigma: `(n_steps + 1,)` noise levels, which the file does not state.
        components: dotted names of the components it speaks of, such as ``transformer_blocks.3.attn``.
        solver: `(n_steps,)`; Euler by default.
        layers: layer type in the file -> last parts of the names it stands for.

    Raises:
        ScheduleFormatError: if the file is not of that layout, does not fit ``sigma``, or names a layer type that no
            component has.
    """
    document = _json.parse(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
    masks = _json.members("", document, known=list(layers), rule="R23")
    if not masks:
        raise ScheduleFormatError("", found="no layer type", expected=f"one of {', '.join(layers)}", rule="R23")
    rows: dict[str, str] = {}
    for kind, mask in masks.items():
        row = _mask_row(kind, mask, sigma)
        named = [name for name in components if name.rpartition(".")[2] in layers[kind]]
        if not named:
            raise ScheduleFormatError(
                kind, found="a layer type of no component given", expected="one that the model has", rule="R23",
                fix="Pass the components of this model, or say with 'layers' what the type stands for.",
            )  # fmt: skip
        for name in named:
            if rows.get(name, row) != row:
                raise ScheduleFormatError(
                    kind, found=f"a second row for {quote(name)}", expected="one row per component", rule="R23"
                )
            rows[name] = row
    return _schedule(rows, model, sigma, solver, origin="SmoothCache")


def _mask_row(path: str, mask: object, sigma: Sequence[float]) -> str:
    entries = _json.items(path, mask, "R23")
    _same_length(path, len(entries), sigma)
    for i, entry in enumerate(entries):
        integer(f"{path}[{i}]", entry, 0, 1, "R23")
    if entries[:1] == [0]:
        raise ScheduleFormatError(f"{path}[0]", found="0", expected="1, as nothing is stored yet", rule="R23")
    return "".join(COMPUTE if entry else REUSE for entry in entries)


def to_smoothcache(
    schedule: Schedule, *, components: Sequence[str], layers: Mapping[str, Sequence[str]] = SMOOTHCACHE
) -> str:
    """The text of a SmoothCache file.

    Args:
        schedule: component rows of ``C`` and ``R``, the same for all components of one layer type.
        components: dotted names of all components of the model that have a layer type.
        layers: layer type -> last parts of the names it stands for; the first that fits a component is used.

    Raises:
        ScheduleFormatError: if the schedule says anything else, or something that differs between blocks.
    """
    _refuse_other_parts(schedule, "SmoothCache's", "R23")
    kinds = {
        module_name(f"components[{i}]", name, "R23"): next(
            (kind for kind, parts in layers.items() if name.rpartition(".")[2] in parts), None
        )
        for i, name in enumerate(components)
    }
    for name, row in schedule.ops:
        _only_reuse(name, row, kinds, "one of the components given", "R23")
    masks: dict[str, str] = {}
    for name, kind in kinds.items():
        if kind is None:
            if schedule.row(name) != COMPUTE * schedule.n_steps:
                raise ScheduleFormatError(
                    join("ops", name), found="a row", expected="none, as it has no layer type", rule="R23"
                )
            continue
        if masks.setdefault(kind, schedule.row(name)) != schedule.row(name):
            raise ScheduleFormatError(
                join("ops", name), found=quote(schedule.row(name), 40), expected="the row of the other blocks",
                rule="R23", fix="SmoothCache's format has one row per layer type.",
            )  # fmt: skip
    return json.dumps({kind: [int(op == COMPUTE) for op in row] for kind, row in masks.items()}) + "\n"


def _same_length(path: str, n_steps: int, sigma: Sequence[float]) -> None:
    if n_steps != len(sigma) - 1:
        raise ScheduleFormatError(
            path, found=f"{n_steps} steps", expected=f"{len(sigma) - 1}, as many as the noise levels given", rule="R24"
        )


def _schedule(
    rows: Mapping[str, str],
    model: ModelRef,
    sigma: Sequence[float],
    solver: Sequence[Solver] | None,
    *,
    origin: str,
    name: object = None,
) -> Schedule:
    plain = name if isinstance(name, str) and name.isprintable() and len(name) <= MAX_NAME else ""
    return Schedule(
        sigma=tuple(sigma),
        solver=tuple(solver) if solver is not None else (Solver(),) * (len(sigma) - 1),
        model=model,
        ops=tuple(rows.items()),
        provenance=Provenance(note=f"imported from {origin}{f': {plain}' if plain else ''}"),
    )


def _refuse_other_parts(schedule: Schedule, whose: str, rule: str) -> None:
    for step, solver in enumerate(schedule.solver):
        if solver != Solver():
            found = f"{solver.family} of order {solver.order}, {solver.prediction}, corrector {solver.corrector}"
            wanted = f"plain Euler, as {whose} format cannot say another"
            raise ScheduleFormatError(f"steps.solver[{step}]", found=found, expected=wanted, rule=rule)
    for part in ("guidance", "precision", "pruned", "tables"):
        if getattr(schedule, part):
            raise ScheduleFormatError(
                part, found="a part of its own", expected=f"none, as {whose} format cannot say it", rule=rule
            )


def _only_reuse(name: str, row: str, known: object, wanted: str, rule: str) -> None:
    if name == MODEL_ROW or name not in known:  # type: ignore[operator]
        raise ScheduleFormatError(join("ops", name), found="a row", expected=f"rows only for {wanted}", rule=rule)
    for step, op in enumerate(row):
        if op not in (COMPUTE, REUSE):
            raise ScheduleFormatError(
                f"{join('ops', name)}[{step}]",
                found=quote(op),
                expected="C or R, all that the format can say",
                rule=rule,
            )
