"""Measures a latency table: every distinct operation of a denoiser call, linear layers in several number formats.

Operations of one shape are one group: all formats, eager and compiled, are timed in the same rounds, so that their
differences are not the machine's drift. A group that an earlier table has is not timed again, and the caller is handed
the table after every group, so that nothing is lost when time runs out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import schedsearch
from schedsearch.errors import UsageError
from schedsearch.evaluate._latency import TimedRun, device_name, quiet_gc
from schedsearch.evaluate._latency_table import MODES, OPS, LatencyTable, Mode, OpRow, TableHeader
from schedsearch.evaluate._linears import FLOAT_WORDS, base_word, linears_of
from schedsearch.evaluate._models import ModelCard, parse_dtype
from schedsearch.evaluate._trace import capture_call
from schedsearch.evaluate._workload import Pipeline, Workload
from schedsearch.evaluate.profile._operations import Operation, operations_of
from schedsearch.evaluate.profile._random import random_embeds
from schedsearch.evaluate.profile._timing import Run, median_ms
from schedsearch.quantize import QuantLinear, execution_of, why_not
from schedsearch.runtime import block_lists_of, denoiser_of, model_ref
from schedsearch.schedule import PrecisionRule, rule_word

_MAX_NOTE = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """One format of an operation: how it would be run, eager and compiled; and what its row says."""

    row: OpRow
    eager: Run
    compiled: Callable[[], Run]


def table_header(pipe: Pipeline, card: ModelCard, *, weights: str, command: str = "") -> TableHeader:
    """Return what a table of ``pipe`` measured now is about."""
    import diffusers

    denoiser = denoiser_of(pipe)
    return TableHeader(
        model=card.name,
        config=model_ref(pipe, height=card.height, width=card.width).config,
        weights=weights,
        height=card.height,
        width=card.width,
        dtype=base_word(denoiser),
        device=device_name(next(denoiser.parameters()).device),
        torch=torch.__version__,
        diffusers=diffusers.__version__,
        schedsearch=schedsearch.__version__,
        date=datetime.now(UTC).date().isoformat(),
        commit=_commit(),
        command=command,
    )


def dtype_word(dtype: str) -> str:
    """Return the word that precision rules have for a dtype of the command line.

    Raises:
        UsageError: the type is not one a pipeline can be loaded in.
    """
    return FLOAT_WORDS[parse_dtype(dtype)]


def _commit() -> str:
    """The commit of a source checkout; empty for an installed package."""
    folder = Path(schedsearch.__file__).parents[1] / ".git"
    try:
        head = (folder / "HEAD").read_text(encoding="utf-8").strip()
        return head if not head.startswith("ref: ") else (folder / head[5:]).read_text(encoding="utf-8").strip()
    except OSError:  # no checkout, or a ref that git has packed away
        return ""


def measure_table(
    pipe: Pipeline,
    workload: Workload,
    header: TableHeader,
    *,
    rules: Sequence[PrecisionRule] = (),
    every_execution: bool = False,
    modes: Sequence[Mode] = MODES,
    ops: Collection[str] = OPS,
    known: LatencyTable | None = None,
    repeats: int = 20,
    backend: str = "inductor",
    on_group: Callable[[LatencyTable, int, int, str], None] | None = None,
) -> LatencyTable:
    """Return the table of ``pipe``'s denoiser on the device it is on.

    Args:
        pipe: the pipeline, without a schedule applied; text encoders are not run.
        workload: how it is called.
        header: from `table_header`.
        rules: formats to time every linear shape in; their patterns do not matter.
        every_execution: time all ways a format can be carried out here, not only the one a schedule gets.
        modes: ``eager``, ``compiled``, or both.
        ops: kinds of operations to time; the others are left out.
        known: an earlier table of the same identity; what it has is kept.
        repeats: timed rounds per group.
        backend: of ``torch.compile``.
        on_group: called after every group with the table so far, groups done, groups in all, and the next one's name.

    Raises:
        UsageError: if the earlier table is about something else.
    """
    if known is not None and known.header.identity != header.identity:
        ours, theirs = header.identity, known.header.identity
        field = next(name for name in ours if ours[name] != theirs[name])
        raise UsageError(
            f"latency table: {field}: found {theirs[field]!r} in the table to go on with, expected {ours[field]!r}. "
            "Write to another file with --out."
        )
    denoiser = denoiser_of(pipe)
    kwargs = capture_call(pipe, workload, random_embeds(pipe, workload)).kwargs
    device = next(denoiser.parameters()).device
    table = known or LatencyTable(header=header, linears=linears_of(denoiser, kwargs), rows=())
    groups = [each for each in operations_of(denoiser, kwargs, block_lists_of(pipe)) if each.op in ops]
    with quiet_gc():
        for i, operation in enumerate(groups):
            if on_group is not None:
                on_group(table, i, len(groups), f"{operation.op} {operation.name or operation.example}".rstrip())
            wanted = list(_candidates(operation, denoiser, header.dtype, rules, every=every_execution, backend=backend))
            if not _is_there(table, [candidate.row for candidate in wanted], modes):
                rows = _time_group(wanted, modes, repeats=repeats, device=device)
                fresh = {row.key for row in rows}
                table = replace(table, rows=(*(row for row in table.rows if row.key not in fresh), *rows))
    if on_group is not None:
        on_group(table, len(groups), len(groups), "")
    return table


def _is_there(table: LatencyTable, wanted: Sequence[OpRow], modes: Sequence[Mode]) -> bool:
    known = {row.key: row for row in table.rows}
    return all(
        row.key in known and all(known[row.key].ms(mode) or f"{mode}: " in known[row.key].note for mode in modes)
        for row in wanted
    )


def _candidates(
    operation: Operation, denoiser: nn.Module, base: str, rules: Sequence[PrecisionRule], *, every: bool, backend: str
) -> Iterator[_Candidate]:
    """The operation in the base dtype, then a linear layer in every format; formats are made one by one, when asked."""
    row = OpRow(
        op=operation.op, name=operation.name, shape=operation.shape, format=base, execution="base",
        eager_ms=None, compiled_ms=None, n=operation.n, example=operation.example,
    )  # fmt: skip
    compile_it = partial(_compiled, operation.call, backend)
    if operation.op == "denoiser":
        compile_it = partial(_blockwise_compiled, operation.call, denoiser, backend)
    yield _Candidate(row=row, eager=operation.call, compiled=compile_it)
    if operation.op == "linear" and isinstance(operation.module, nn.Linear):
        inputs = operation.call.args  # type: ignore[attr-defined] # a partial of the module, see operations_of
        for rule in rules:
            for execution, note in _executions(operation.module, rule, every=every):
                changed = replace(row, format=rule_word(rule), execution=execution, note=note)
                yield _in_format(changed, operation.module, rule, inputs, backend)


def _executions(linear: nn.Linear, rule: PrecisionRule, *, every: bool) -> list[tuple[str, str]]:
    """How a schedule would carry ``rule`` out, why not faster if only by simulation, and on request all other ways."""
    where = (linear.out_features, linear.in_features), linear.weight.dtype, linear.weight.device
    choice = execution_of(rule, *where)
    if choice.execution == "simulated":
        why = "; ".join(f"no {word}, {reason}" for word, reason in choice.reasons if word != "base")
        return [("simulated", why[:_MAX_NOTE])]
    others = [word for word, _ in choice.reasons if word != "simulated" and not why_not(word, rule, *where)]
    return [(choice.execution, ""), *((word, "") for word in others if every)]


def _in_format(row: OpRow, linear: nn.Linear, rule: PrecisionRule, inputs: tuple[Any, ...], backend: str) -> _Candidate:
    """A linear layer under ``rule``, carried out as ``row`` says."""
    made: list[nn.Module] = []

    def call() -> object:
        if not made:  # quantised on its first run, which is never timed
            made.append(QuantLinear.of(linear, rule, {}, execution=row.execution))
        return made[0](*inputs)

    def compiled() -> Run:
        call()
        return _compiled(partial(made[0], *inputs), backend)

    return _Candidate(row=row, eager=call, compiled=compiled)


def _compiled(call: Callable[[], object], backend: str) -> Run:
    """What ``call`` (a partial) calls, under ``torch.compile``."""
    function: Any = call.func  # type: ignore[attr-defined] # a partial
    run: Any = torch.compile(function, dynamic=False, backend=backend)
    return partial(run, *call.args, **call.keywords)  # type: ignore[attr-defined]


def _blockwise_compiled(call: Callable[[], object], denoiser: nn.Module, backend: str) -> Run:
    """The denoiser with each of its repeated blocks compiled, as ``compile_repeated_blocks`` does it."""
    kinds = set(getattr(denoiser, "_repeated_blocks", ()) or ())
    blocks = [module for module in denoiser.modules() if type(module).__name__ in kinds]
    compiled = [torch.compile(block._call_impl, dynamic=False, backend=backend) for block in blocks]

    @contextmanager
    def in_place() -> Iterator[None]:
        for block, function in zip(blocks, compiled, strict=True):
            block._compiled_call_impl = function
        try:
            yield
        finally:
            for block in blocks:
                block._compiled_call_impl = None

    return TimedRun(call=call, prepare=in_place)


def _time_group(
    candidates: Sequence[_Candidate], modes: Sequence[Mode], *, repeats: int, device: torch.device
) -> list[OpRow]:
    """The rows of one group, timed in the same rounds; what cannot be run says why in its note."""
    runs: dict[tuple[int, Mode], Run] = {}
    notes: dict[int, list[str]] = {i: [candidate.row.note] for i, candidate in enumerate(candidates)}
    torch.compiler.reset()  # or the graphs of earlier shapes count against the limit of recompilations
    for i, candidate in enumerate(candidates):
        for mode in modes:
            try:
                run = candidate.eager if mode == "eager" else candidate.compiled()
                _once(run)
            except Exception as error:  # a kernel or compiler that refuses a shape raises anything
                text = " ".join(str(error).split())
                if candidate.row.execution == "base" and mode == "eager":
                    raise
                notes[i].append(f"{mode}: {type(error).__name__}: {text}")
            else:
                runs[i, mode] = run
    names = {key: f"{key[0]} {key[1]}" for key in runs}
    found = median_ms({names[key]: run for key, run in runs.items()}, repeats=repeats, device=device)
    torch.compiler.reset()
    return [
        replace(
            candidate.row,
            eager_ms=found.get(names.get((i, "eager"), "")),
            compiled_ms=found.get(names.get((i, "compiled"), "")),
            note="; ".join(filter(None, notes[i]))[:_MAX_NOTE],
        )
        for i, candidate in enumerate(candidates)
    ]


def _once(run: Run) -> None:
    """Run it as it will be timed, so that it is compiled and tuned before."""
    with torch.no_grad():
        if isinstance(run, TimedRun):
            with run.prepare():
                run.call()
        else:
            run()
