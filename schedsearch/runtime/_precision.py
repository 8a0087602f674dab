"""Puts a schedule's precision rules on the linear layers of a live denoiser, and says what became of each.

A rule speaks of linear layers by their dotted names inside the denoiser, those under an adapter (LoRA) by the name of
the adapted layer: the adapter's own small layers are left alone. The layer stays where it is; its forward is replaced
on the instance, underneath offloading hooks, so taking it off leaves the very weights that were there.

Memory: the layers' own weights stay as they are, on their device; the low-bit ones come on top, on the device that the
pipeline runs on. `LowBitLayers.n_bytes` says how much. `LowBitLayers.release` lets the own weights go, for good.

Whoever applies many schedules to one pipeline keeps a `LowBitCache`, so that a layer is made once per rule.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Any, cast

import torch
from safetensors.torch import load
from torch import Tensor, nn

from schedsearch.errors import ApplyError, ModelMismatchError, SchedSearchError, UnsupportedFeatureError
from schedsearch.quantize import TABLES, QuantLinear, check_tables, is_base, words_of
from schedsearch.runtime._state import RunState
from schedsearch.runtime._wrap import Patch
from schedsearch.schedule import CORRECTION, SOLVER_TENSOR, PrecisionRule, Schedule, corrected_row, rule_of

CACHE_BYTES = 1024**3
"""Memory for low-bit weights that a `LowBitCache` may take, unless told otherwise."""

_ADAPTED = "base_layer"
"""What peft calls the layer that an adapter's wrapper holds."""


@dataclass(frozen=True, slots=True)
class LowBitLayer:
    """One linear layer that a rule speaks of; ``layer`` is ``None`` where the rule leaves it as it is."""

    name: str
    rule: PrecisionRule
    layer: QuantLinear | None


@dataclass(frozen=True, slots=True)
class LowBitLayers:
    """All linear layers that rules speak of, in the denoiser's order, and how many it has."""

    layers: tuple[LowBitLayer, ...]
    n_linears: int
    released: bool = False

    def release(self, denoiser: nn.Module) -> LowBitLayers:
        """Lets the layers' own weights go where a low-bit one stands in and nothing else uses them.

        Raises:
            ApplyError: offloading moves the weights about.
        """
        if any(hasattr(entry.layer.base, "_hf_hook") for entry in self.layers if entry.layer is not None):
            raise ApplyError(
                "keep_base: found False on a pipeline with offloading, which moves the layers' own weights about, "
                "expected a pipeline that is on its device. Leave keep_base out, or load it without offloading."
            )
        uses = Counter(id(weight) for _, weight in denoiser.named_parameters(remove_duplicate=False))
        released = [
            entry.layer.release()
            for entry in self.layers
            if entry.layer is not None and uses[id(entry.layer.base.weight)] == 1
        ]
        return replace(self, released=any(released))

    @property
    def n_bytes(self) -> int:
        """Bytes held on top of the layers' own weights."""
        return sum(entry.layer.n_bytes for entry in self.layers if entry.layer is not None)

    def patch(self, denoiser: nn.Module, state: RunState) -> list[Patch]:
        """Replaces the forward of every layer; its scales per step come from the run."""
        linears = linears_of(denoiser)
        patches: list[Patch] = []
        tables: list[Tensor] = []
        for entry in self.layers:
            if entry.layer is None:
                continue
            places: list[int | None] = []
            for table in (entry.layer.activation_scale, entry.layer.affine):
                is_per_step = table is not None and len(table) > 1
                places.append(len(tables) if is_per_step else None)
                if table is not None and is_per_step:
                    tables.append(table)
            scale, affine = places
            patches.append(Patch(linears[entry.name], _forward(entry.layer, state, scale=scale, affine=affine)))
        state.layer_tables = tuple(tables)
        return patches

    def lines(self) -> Iterator[str]:
        """What became of the layers in words, adjacent equal ones together."""
        if not self.layers:
            return
        yield (
            f"precision: {len(self.layers)} of {self.n_linears} linear layers; {self.n_bytes / 2**20:.2f} MiB of "
            f"low-bit weights {'in place of' if self.released else 'beside'} the model's own"
        )
        for words, run in groupby(self.layers, key=_words):
            names = [entry.name for entry in run]
            where = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)} layers)"
            yield f"  {where}: {words}"
        reasons = {_words(entry): entry.layer.choice.reasons for entry in self.layers if entry.layer is not None}
        for words, against in reasons.items():
            yield f"  {words}: {'; '.join(f'not {word}: {reason}' for word, reason in against)}"


def _words(entry: LowBitLayer) -> str:
    """Formats and execution of a layer; what is simulated says so, lest anybody expect it to be fast."""
    if entry.layer is None:
        return f"{words_of(entry.rule)}, as it is"
    static = entry.layer.activation_scale
    scales = "" if static is None else ", static scales" if static.numel() == 1 else ", static scales per step"
    affine = entry.layer.affine
    scales += "" if affine is None else ", corrected" if len(affine) == 1 else ", corrected per step"
    execution = entry.layer.choice.execution
    return f"{words_of(entry.rule)}{scales}, {execution}{' (not faster)' if execution == 'simulated' else ''}"


def _forward(
    layer: QuantLinear, state: RunState, *, scale: int | None, affine: int | None
) -> Callable[[Tensor], Tensor]:
    """The forward of a low-bit layer; ``scale`` and ``affine`` are the places of its tables per step, if it has any."""

    def forward(input: Tensor) -> Tensor:  # noqa: A002 - the name nn.Linear has for it
        entries = state.now.layers
        return cast(
            "Tensor",
            layer(
                input,
                None if scale is None or not entries else entries[scale],
                None if affine is None or not entries else entries[affine],
            ),
        )

    return forward


def linears_of(denoiser: nn.Module) -> dict[str, nn.Linear]:
    """Returns the linear layers by the names rules know them by, in the denoiser's order."""
    adapters = tuple(
        f"{name}."
        for name, module in denoiser.named_modules()
        if isinstance(getattr(module, _ADAPTED, None), nn.Linear)
    )
    found: dict[str, nn.Linear] = {}
    for name, module in denoiser.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        owner, _, last = name.rpartition(".")
        if name.startswith(adapters):
            if last == _ADAPTED:
                found[owner] = module
        else:
            found[name] = module
    return found


def rules_of(names: Sequence[str], rules: Sequence[PrecisionRule]) -> dict[str, PrecisionRule]:
    """Returns the rule of every layer that has one: the first whose pattern matches its name.

    Raises:
        ModelMismatchError: a pattern matches none of the names.
    """
    for i, rule in enumerate(rules):
        if not any(fnmatchcase(name, rule.pattern) for name in names):
            near = get_close_matches(rule.pattern, names, n=3, cutoff=0.3) or list(names[:3])
            raise ModelMismatchError(
                f"precision[{i}].pattern: found {rule.pattern!r}, which matches none of the denoiser's {len(names)} "
                f"linear layers, expected one such as {', '.join(near)}. Correct the pattern, or drop the rule."
            )
    return {name: chosen for name in names if (chosen := rule_of(rules, name)) is not None}


def layer_tables(schedule: Schedule) -> dict[str, dict[str, Tensor]]:
    """Returns the tensors of the side file that belong to layers: by layer, then by one of `TABLES`.

    Raises:
        UnsupportedFeatureError: a tensor that this release does not know.
        ApplyError: the side file was not at hand.
    """
    tensors = schedule.tables.tensors if schedule.tables is not None else ()
    names = [t.name for t in tensors if t.name != SOLVER_TENSOR and corrected_row(t.name) is None]
    for name in names:
        if "." not in name or name.rpartition(".")[2] not in TABLES:
            raise UnsupportedFeatureError(
                f"tables.tensors.{name}: found a tensor that this release does not know, expected {SOLVER_TENSOR!r}, "
                f"a row's name and .{CORRECTION}, or a layer's name and {', '.join(f'.{word}' for word in TABLES)}. "
                "Use a schedule without it, or a release that replays it."
            )
    if not names or schedule.tables is None:
        return {}
    if schedule.tables.data is None:
        raise ApplyError(
            f"tables: found no data for {names[0]}, expected the .safetensors file that belongs to the schedule. Copy "
            "it beside the schedule, and read the schedule from there."
        )
    loaded = load(schedule.tables.data)
    tables: dict[str, dict[str, Tensor]] = {}
    for name in names:
        layer, _, word = name.rpartition(".")
        tables.setdefault(layer, {})[word] = loaded[name]
    return tables


class LowBitCache:
    """Low-bit layers by name and rule, so that schedules applied one after another do not make them again.

    Layers with tables are not kept. The one that was not used for longest goes first. For one pipeline whose weights
    stay as they are.

    Args:
        max_bytes: memory for low-bit weights, at most.

    Attributes:
        made: how many layers were made, kept or not.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self.made = 0
        self._held: OrderedDict[tuple[str, PrecisionRule], QuantLinear] = OrderedDict()
        self._n_bytes = 0

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        return self._n_bytes

    def get(self, name: str, linear: nn.Linear, rule: PrecisionRule, device: torch.device) -> QuantLinear:
        """Returns the layer of ``linear`` under ``rule``, made if it is not at hand."""
        key = (name, replace(rule, pattern="*"))
        layer = self._held.pop(key, None)
        if layer is None or layer.base is not linear or not _is_on(layer, device):
            if layer is not None:
                self._n_bytes -= layer.n_bytes
            layer = QuantLinear.of(linear, rule, {}, device=device)
            self.made += 1
            self._n_bytes += layer.n_bytes
        self._held[key] = layer
        while self._n_bytes > self.max_bytes and self._held:
            self._n_bytes -= self._held.popitem(last=False)[1].n_bytes
        return layer


def _is_on(layer: QuantLinear, device: torch.device) -> bool:
    return layer.device == torch.empty(0, device=device).device


def low_bit_layers(
    denoiser: nn.Module, schedule: Schedule, device: torch.device, cache: LowBitCache | None = None
) -> LowBitLayers:
    """Returns the low-bit layers that a schedule's rules and tables ask for; changes nothing.

    Args:
        denoiser: the module.
        schedule: what to follow; its tables are there.
        device: where the denoiser will run.
        cache: where layers are kept.

    Raises:
        ModelMismatchError: a pattern matches no layer, or a table belongs to none that a rule speaks of.
        ApplyError: a table does not fit its layer.
        UnsupportedFeatureError: a table of an unknown kind, or a layer that another library quantised.
    """
    tables = layer_tables(schedule)
    if not schedule.precision and not tables:
        return LowBitLayers((), 0)
    linears = linears_of(denoiser)
    rules = rules_of(tuple(linears), schedule.precision)
    for name in tables:
        if name not in rules:
            known = "no precision rule speaks of it" if name in linears else "the denoiser has no such linear layer"
            raise ModelMismatchError(
                f"tables.tensors.{name}.{next(iter(tables[name]))}: found a table of a layer while {known}, expected "
                "one of a layer with a rule. Add the rule, or drop the table."
            )
    made = tuple(
        LowBitLayer(
            name, rule,
            _made(name, linears[name], rule, tables.get(name, {}), schedule.n_steps, device=device, cache=cache),
        )
        for name, rule in rules.items()
    )  # fmt: skip
    return LowBitLayers(made, len(linears))


def _made(
    name: str,
    linear: nn.Linear,
    rule: PrecisionRule,
    tables: Mapping[str, Tensor],
    n_steps: int,
    *,
    device: torch.device,
    cache: LowBitCache | None,
) -> QuantLinear | None:
    if is_base(rule, linear.weight.dtype) and not tables:
        return None
    try:
        check_tables(tables, rule, (linear.out_features, linear.in_features), n_steps)
        with _at_hand(linear):
            if cache is not None and not tables:
                return cache.get(name, linear, rule, device)
            return QuantLinear.of(linear, rule, tables, device=device)
    except ApplyError as error:
        raise type(error)(f"{name}: {error}") from None
    except SchedSearchError as error:
        raise ApplyError(f"tables.tensors.{name}.{error} Make the table anew for this model.") from None


@contextmanager
def _at_hand(linear: nn.Linear) -> Iterator[None]:
    """Brings a weight that sequential offloading keeps elsewhere, through the hook that does so for every call."""
    hook: Any = getattr(linear, "_hf_hook", None)
    if hook is None or not linear.weight.is_meta:
        yield
        return
    hook.pre_forward(linear)
    try:
        yield
    finally:
        hook.post_forward(linear, None)
