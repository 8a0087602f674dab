"""What was measured of single changes to a model: one layer in another number format, one block removed.

The *effect* of a change is the mean over prompts of the squared relative distance between the final latents of a run
with that change and of the same run without it, from the same noise. Squares, because errors that point in unrelated
directions add up in their squares; whether they do is measured as well (`Subset`). Knows no tensor and no pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Literal

from schedsearch.errors import EvaluationError
from schedsearch.schedule import PrecisionRule

REMOVED = ""
"""The word of a cell whose module is removed."""

SubsetKind = Literal["formats", "removed"]
SUBSET_KINDS: tuple[SubsetKind, ...] = ("formats", "removed")

Pick = tuple[str, str]
"""A module and the word of what is done to it."""


def effect_of(errors: tuple[float, ...]) -> float:
    """Return the mean square of relative latent errors, one per prompt.

    >>> effect_of((0.3, 0.4))
    0.125
    """
    return sum(error * error for error in errors) / len(errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A number format that a layer may be given.

    Attributes:
        word: what it is called, ``WEIGHT[/ACTIVATION][@SCALES][+RANK]``.
        weight: format of the weight.
        activation: format of the input.
        scales: granularity.
        rank: rank of the branch beside the weight.
    """

    word: str
    weight: str
    activation: str
    scales: str = "default"
    rank: int = 0

    def rule(self, pattern: str) -> PrecisionRule:
        """Return the precision rule that gives this format to layers of that pattern."""
        return PrecisionRule(
            pattern=pattern, weight=self.weight, activation=self.activation, scales=self.scales, rank=self.rank
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A linear layer.

    Attributes:
        name: dotted name, as precision rules know it.
        weights: elements of its weight matrix.
        bits: bits of one of them as it is.
    """

    name: str
    weights: int
    bits: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One change and its effect.

    Attributes:
        module: dotted name of the layer or block.
        word: the layer's format, see `Choice`; `REMOVED` for a block that is left out.
        errors: relative latent error of each prompt.
        bits: bits per element that the weight then takes, scales and low-rank branch included; 0 for a removed block.
        saved_bytes: what a checkpoint loses.
        saved_ms: what a denoiser call of one image loses on the device that was timed, negative where it takes longer;
            ``None`` if that was not timed, or the format is only simulated there.
    """

    module: str
    word: str
    errors: tuple[float, ...]
    bits: float
    saved_bytes: int
    saved_ms: float | None = None

    @property
    def key(self) -> Pick:
        """What tells cells apart."""
        return self.module, self.word

    @property
    def effect(self) -> float:
        """Mean squared relative latent error."""
        return effect_of(self.errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """Several changes at once.

    Attributes:
        kind: whether formats were chosen or blocks removed.
        picks: the changes.
        errors: relative latent error of each prompt.
    """

    kind: SubsetKind
    picks: tuple[Pick, ...]
    errors: tuple[float, ...]

    @property
    def effect(self) -> float:
        """Mean squared relative latent error."""
        return effect_of(self.errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the numbers are about; only records of equal `identity` belong together.

    Attributes:
        model: the card's name.
        config: SHA-256 (hex) of the denoiser's configuration.
        carrier: id of the schedule that was run with and without each change.
        steps: its steps.
        prompts: name and hash of the prompt set.
        n_prompts: how many of its first prompts.
        seed: of the noise.
        dtype: word of the denoiser's dtype.
        torch: version.
        schedsearch: version.
        date: ISO day it was begun.
        command: what the user called.
    """

    model: str
    config: str
    carrier: str
    steps: int
    prompts: str
    n_prompts: int
    seed: int
    dtype: str
    torch: str
    schedsearch: str
    date: str
    command: str

    @property
    def identity(self) -> dict[str, object]:
        """All that changes a number."""
        return {key: value for key, value in asdict(self).items() if key not in {"date", "command"}}


@dataclass(frozen=True, kw_only=True)
class Sensitivities:
    """Everything measured of one model.

    Attributes:
        header: what it is about.
        layers: the denoiser's linear layers, in its order.
        blocks: its blocks, in running order.
        choices: the formats.
        cells: single changes.
        subsets: several at once, to see whether effects add up.
    """

    header: Header
    layers: tuple[Layer, ...]
    blocks: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()
    cells: tuple[Cell, ...] = ()
    subsets: tuple[Subset, ...] = ()

    @cached_property
    def by_key(self) -> Mapping[Pick, Cell]:
        """Every cell by its module and word."""
        return {cell.key: cell for cell in self.cells}

    @cached_property
    def by_word(self) -> Mapping[str, Choice]:
        """Every format by its word."""
        return {choice.word: choice for choice in self.choices}

    @property
    def weights(self) -> int:
        """Elements of all linear layers' weights."""
        return sum(layer.weights for layer in self.layers)

    def cell(self, module: str, word: str) -> Cell:
        """Return one cell.

        Raises:
            EvaluationError: it was not measured.
        """
        if (module, word) not in self.by_key:
            raise EvaluationError(
                f"sensitivities: found no cell of {module} in {word or 'removal'}, expected it. Let `schedsearch "
                "sensitivity` finish the file."
            )
        return self.by_key[module, word]

    def predicted(self, picks: tuple[Pick, ...]) -> float:
        """Return the sum of the effects of single changes.

        Raises:
            EvaluationError: one was not measured.
        """
        return sum(self.cell(*pick).effect for pick in picks)

    def having(self, *, cells: tuple[Cell, ...] = (), subsets: tuple[Subset, ...] = ()) -> Sensitivities:
        """Return this with more cells, each in place of an older one of the same key, and more subsets."""
        known = {cell.key: cell for cell in (*self.cells, *cells)}
        return replace(self, cells=tuple(known.values()), subsets=(*self.subsets, *subsets))
