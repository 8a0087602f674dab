"""Measures what single layers in other formats, and single removed blocks, do to the final latents.

Every change is run alone on a *carrier*, a schedule that may be much cheaper than the full run, and compared with the
carrier itself from the same noise; then random sets of changes, to see whether effects add up. Each number is handed
out as soon as it is there, so a run that is cut off loses one. Does not know what is made of the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import torch

from schedsearch import __version__
from schedsearch.errors import UsageError
from schedsearch.evaluate._latency_table import LatencyTable, Mode, parse_word
from schedsearch.evaluate._latent_errors import LatentErrors
from schedsearch.evaluate._linears import FLOAT_BYTES, Linears, linears_of, protects, weight_bytes
from schedsearch.evaluate._models import ModelCard
from schedsearch.evaluate._prices import LinearPrices
from schedsearch.evaluate._reference import PairedRuns
from schedsearch.evaluate._trace import capture_call
from schedsearch.evaluate._workload import Pipeline, Workload
from schedsearch.quantize import average_bits
from schedsearch.runtime import blocks_of, denoiser_of
from schedsearch.schedule import PrecisionRule, Schedule, rule_word
from schedsearch.sensitivity import (
    REMOVED,
    Cell,
    Choice,
    Header,
    Layer,
    Sensitivities,
    Subset,
    SubsetKind,
    draw_subsets,
)

Save = Callable[[Sensitivities], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityPlan:
    """What is to be measured.

    Attributes:
        choices: formats for every layer.
        blocks: whether to remove each block.
        subsets: how many random sets of each kind to measure.
        subset_words: formats that the sets are drawn from; all of them if there are none.
        seed: of the random sets.
    """

    choices: tuple[Choice, ...]
    blocks: bool = True
    subsets: int = 32
    subset_words: tuple[str, ...] = ()
    seed: int = 0


def choices_of(words: Sequence[str], *, base: str, activation: str | None = None) -> tuple[Choice, ...]:
    """Return formats from their words, each once; those that take as many bits as the base are left out.

    Args:
        words: as `parse_word` reads them; one without an activation takes ``activation``.
        base: word of the denoiser's dtype.
        activation: format of the inputs; the base where left out.

    Raises:
        UsageError: a word is none.
    """
    found: dict[str, Choice] = {}
    for word in words:
        rule = parse_word(word, base=base)
        if "/" not in word:
            rule = replace(rule, activation=activation or base)
        if protects(rule, base) or average_bits((1, 1 << 20), rule.weight) >= 8 * FLOAT_BYTES[base]:
            continue
        found[rule_word(rule)] = Choice(
            word=rule_word(rule), weight=rule.weight, activation=rule.activation, scales=rule.scales, rank=rule.rank
        )
    return tuple(found.values())


class SensitivityMeter:
    """Measures changes on one carrier.

    Args:
        pipe: the pipeline, without a schedule applied.
        card: how it is called.
        prompts: calibration prompts.
        prompts_name: name and hash of the set they are from.
        carrier: what runs with and without each change; without precision rules and removed blocks.
        seed: of the noise.
        batch: images per call.
        latencies: prices of formats and blocks; none are stated without it.
        mode: column of that table.

    Raises:
        UsageError: there are no prompts, or the carrier has changes of its own.
        EvaluationError: the latency table lacks base times.
    """

    def __init__(
        self,
        pipe: Pipeline,
        card: ModelCard,
        prompts: Sequence[str],
        *,
        prompts_name: str,
        carrier: Schedule,
        seed: int = 0,
        batch: int = 8,
        latencies: LatencyTable | None = None,
        mode: Mode = "eager",
    ) -> None:
        if carrier.precision or carrier.pruned:
            raise UsageError(
                "carrier: found precision rules or removed blocks, expected none: their effect is what is measured. "
                "Use a schedule without them."
            )
        workload = Workload.from_card(card)
        self.carrier = carrier
        self._errors = LatentErrors(PairedRuns(pipe, workload, tuple(prompts), seed=seed, batch=batch), base=carrier)
        call = capture_call(pipe, workload, prompts[0])
        self.linears: Linears = linears_of(denoiser_of(pipe), call.kwargs)
        self.blocks = tuple(block.name for block in blocks_of(pipe))
        self._prices = None if latencies is None else LinearPrices.of(latencies, mode)
        self._latencies, self._mode = latencies, mode
        self._header = (card.name, prompts_name, len(prompts), seed)

    def outset(self, *, command: str = "") -> Sensitivities:
        """Return the record that nothing has been measured for yet."""
        name, prompts, n_prompts, seed = self._header
        base = self.linears.base
        header = Header(
            model=name,
            config=self.carrier.model.config,
            carrier=self.carrier.id,
            steps=self.carrier.n_steps,
            prompts=prompts,
            n_prompts=n_prompts,
            seed=seed,
            dtype=base,
            torch=str(torch.__version__),
            schedsearch=__version__,
            date=datetime.now(UTC).date().isoformat(),
            command=command,
        )
        layers = tuple(
            Layer(name=layer.name, weights=layer.weights, bits=8.0 * FLOAT_BYTES[base]) for layer in self.linears.layers
        )
        return Sensitivities(header=header, layers=layers, blocks=self.blocks)

    def errors(self, precision: tuple[PrecisionRule, ...] = (), pruned: tuple[str, ...] = ()) -> tuple[float, ...]:
        """Return the relative latent error of each prompt with these changes, against the carrier without."""
        return self._errors.of(with_changes(self.carrier, precision, pruned))

    def format_cell(self, name: str, choice: Choice) -> Cell:
        """Measure one layer in one format."""
        return self._stated(name, choice, self.errors((choice.rule(name),)))

    def removed_cell(self, block: str) -> Cell:
        """Measure one block left out."""
        return self._stated(block, None, self.errors((), (block,)))

    def restated(self, cell: Cell, choice: Choice | None) -> Cell:
        """Return a cell with what it saves stated anew, as prices may have come later."""
        return self._stated(cell.module, choice, cell.errors)

    def subset(self, kind: SubsetKind, picks: tuple[tuple[str, str], ...], choices: Mapping[str, Choice]) -> Subset:
        """Measure several changes at once."""
        precision = tuple(choices[word].rule(name) for name, word in picks if word)
        pruned = tuple(name for name, word in picks if not word)
        return Subset(kind=kind, picks=picks, errors=self.errors(precision, pruned))

    def _stated(self, module: str, choice: Choice | None, errors: tuple[float, ...]) -> Cell:
        changed = (
            with_changes(self.carrier, (), (module,))
            if choice is None
            else with_changes(self.carrier, (choice.rule(module),), ())
        )
        return Cell(
            module=module,
            word=REMOVED if choice is None else choice.word,
            errors=errors,
            bits=0.0 if choice is None else self._bits(module, choice),
            saved_bytes=weight_bytes(self.carrier, self.linears) - weight_bytes(changed, self.linears),
            saved_ms=self._block_ms(module) if choice is None else self._saved_ms(module, choice),
        )

    def _bits(self, name: str, choice: Choice) -> float:
        layer = next(layer for layer in self.linears.layers if layer.name == name)
        return average_bits(
            (layer.out_features, layer.in_features),
            choice.weight,
            scales=choice.scales,
            rank=choice.rank,
            base_bits=8 * FLOAT_BYTES[self.linears.base],
        )

    def _saved_ms(self, name: str, choice: Choice) -> float | None:
        shape = next(layer.shape for layer in self.linears.layers if layer.name == name)
        if self._prices is None or not shape[0]:
            return None
        price = self._prices.price(shape, choice.rule(name))
        return self._prices.price(shape, None).ms - price.ms if price.basis == "executed" else None

    def _block_ms(self, name: str) -> float | None:
        row = None if self._latencies is None else self._latencies.find("block", name=name.rpartition(".")[0])
        return None if row is None else row.ms(self._mode)


def with_changes(carrier: Schedule, precision: tuple[PrecisionRule, ...], pruned: tuple[str, ...]) -> Schedule:
    """Return a schedule with these rules and removed modules, without rows of what is removed."""
    ops = tuple((name, row) for name, row in carrier.ops if not _inside(name, pruned))
    return replace(carrier, precision=precision, pruned=pruned, ops=ops)


def _inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def measure_sensitivities(
    meter: SensitivityMeter,
    plan: SensitivityPlan,
    *,
    known: Sensitivities | None = None,
    save: Save | None = None,
    on_progress: Progress | None = None,
    command: str = "",
) -> Sensitivities:
    """Return everything that ``plan`` asks for, what is known included.

    Args:
        meter: who measures.
        plan: what.
        known: what an earlier run left; not measured again, its prices stated anew.
        save: called after every measurement with all there is.
        on_progress: called with the measurements done and in all.
        command: for the record.

    Raises:
        UsageError: ``known`` is about something else.
    """
    found = _continued(meter, plan, known, command)
    todo = list(_todo(found, plan))
    for done, (module, word) in enumerate(todo):
        cell = meter.format_cell(module, found.by_word[word]) if word else meter.removed_cell(module)
        found = found.having(cells=(cell,))
        _report(found, save, on_progress, done + 1, len(todo))
    for kind in _kinds(plan):
        words = plan.subset_words or tuple(choice.word for choice in plan.choices)
        drawn = draw_subsets(found, kind, plan.subsets, words=words, seed=plan.seed)
        have = {subset.picks for subset in found.subsets}
        missing = [picks for picks in dict.fromkeys(drawn) if picks not in have]
        for done, picks in enumerate(missing):
            found = found.having(subsets=(meter.subset(kind, picks, found.by_word),))
            _report(found, save, on_progress, done + 1, len(missing))
    return found


def _report(found: Sensitivities, save: Save | None, on_progress: Progress | None, done: int, total: int) -> None:
    if save is not None:
        save(found)
    if on_progress is not None:
        on_progress(done, total)


def _continued(
    meter: SensitivityMeter, plan: SensitivityPlan, known: Sensitivities | None, command: str
) -> Sensitivities:
    outset = meter.outset(command=command)
    if known is None:
        return replace(outset, choices=plan.choices)
    ours = {**outset.header.identity, "layers": outset.layers, "blocks": outset.blocks}
    theirs = {**known.header.identity, "layers": known.layers, "blocks": known.blocks}
    for key, value in ours.items():
        if theirs[key] != value:
            shown = ("other ones", "those of this model") if key in {"layers", "blocks"} else (theirs[key], value)
            raise UsageError(
                f"sensitivities: {key}: found {shown[0]} in the file, expected {shown[1]}. Write into another file."
            )
    choices = {choice.word: choice for choice in (*known.choices, *plan.choices)}
    cells = tuple(meter.restated(cell, choices[cell.word] if cell.word else None) for cell in known.cells)
    return replace(known, choices=tuple(choices.values()), cells=cells)


def _todo(found: Sensitivities, plan: SensitivityPlan) -> Iterator[tuple[str, str]]:
    for choice in plan.choices:
        for layer in found.layers:
            if (layer.name, choice.word) not in found.by_key:
                yield layer.name, choice.word
    if plan.blocks:
        for block in found.blocks:
            if (block, REMOVED) not in found.by_key:
                yield block, REMOVED


def _kinds(plan: SensitivityPlan) -> tuple[SubsetKind, ...]:
    kinds: tuple[SubsetKind, ...] = ("formats",) if plan.choices else ()
    return (*kinds, "removed") if plan.blocks else kinds
