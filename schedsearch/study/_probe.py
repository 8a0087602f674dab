"""What one plain run of a model teaches about cheaper ones: inner products of its outputs, and how its blocks change.

The plain run ("teacher") takes Euler steps, so its samples are sums of the first sample and of model outputs:
``x_j = x_0 + sum_{t<j} (sigma_{t+1} - sigma_t) v_t`` (for a variance-preserving model ``x`` stands for ``x / alpha``
and ``v`` for the predicted noise). Every linear multistep step along it is such a sum as well. The matrix of inner
products of ``[x_0, v_0, ..., v_{n-1}]`` therefore holds the exact error of any of them, without a tensor in sight. This
module does not know how a probe is measured, nor what is made of it.

Symbols: ``n`` steps of the teacher; ``G`` the inner products; ``B`` a square root of them, ``G = B' B``, whose columns
stand in for the tensors: they have the same lengths and angles.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from schedsearch.errors import StudyError

Array = npt.NDArray[np.float64]

FORMAT = "schedsearch.probe"
VERSION = 1
REACH = 3
"""How many steps ahead the change of a block is recorded."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockProbe:
    """How much one block does, and how fast that changes.

    Attributes:
        name: dotted name of the block.
        change: `(n_steps, 3)` ``|r_{t+k} - r_t|_1 / |r_{t+k}|_1`` of its residual ``r`` (out minus in) for k = 1, 2, 3;
            nan where ``t + k`` is after the last step.
        size: mean over steps of ``|out - in|_1 / |in|_1``; near 0 for a block that hardly does anything.
    """

    name: str
    change: Array
    size: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """Measurements along the plain run of one model; two probes are equal if their numbers are.

    Attributes:
        sigma: `(n_steps + 1,)` the default noise levels.
        gram: `(n_steps + 1, n_steps + 1)` inner products of ``[x_0, v_0, ..., v_{n-1}]``, averaged over prompts and
            elements.
        l1: `(n_steps, n_steps)` mean of ``|v_i - v_j|`` over prompts and elements.
        blocks: one record per block, in order of execution.
        floor: mean squared difference between final samples that no plan could go below, because they differ in
            rounding only; 0 if unknown.
        scale: mean squared error of images in [0, 1] per mean squared error of final samples; 1 if unknown.
        low_bit: `(n_steps, n_steps)` mean of ``|v_t - q_i|``, index t first, where ``q`` are the outputs of the same
            run with low-bit layers: what is lost by giving ``q_i`` for ``v_t``, at ``t = i`` by rounding alone. Not
            symmetric. ``None`` without such a run.

    Raises:
        StudyError: on construction, if shapes do not agree or a number cannot be.
    """

    sigma: tuple[float, ...]
    gram: Array
    l1: Array
    blocks: tuple[BlockProbe, ...] = ()
    floor: float = 0.0
    scale: float = 1.0
    low_bit: Array | None = None

    def __post_init__(self) -> None:
        """Check every part and freeze the arrays."""
        store = object.__setattr__  # the one moment at which a frozen record may still change
        store(self, "sigma", tuple(float(level) for level in self.sigma))
        _require(len(self.sigma) >= 2, "sigma", f"{len(self.sigma)} levels", "at least 2")
        _require(bool(np.all(np.diff(self.sigma) < 0.0)), "sigma", "levels that do not fall", "strictly falling ones")
        n = self.n_steps
        store(self, "gram", _matrix("gram", self.gram, (n + 1, n + 1)))
        store(self, "l1", _matrix("l1", self.l1, (n, n)))
        for name in ("gram", "l1"):
            matrix = getattr(self, name)
            symmetric = np.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-9 * max(1.0, float(np.abs(matrix).max())))
            _require(symmetric, name, "a matrix that is not symmetric", "a symmetric one")
        _require(bool(np.all(np.diag(self.gram) >= 0.0)), "gram", "a negative square", "squares on the diagonal")
        _require(bool(np.all(self.l1 >= 0.0)), "l1", "a negative distance", "distances of 0 or more")
        if self.low_bit is not None:
            store(self, "low_bit", _matrix("low_bit", self.low_bit, (n, n)))
            _require(bool(np.all(self.low_bit >= 0.0)), "low_bit", "a negative distance", "distances of 0 or more")
        names = [block.name for block in self.blocks]
        _require(len(set(names)) == len(names), "blocks", "a name twice", "each block once")
        for block in self.blocks:
            path = f"blocks.{block.name}"
            _require(
                block.change.shape == (n, REACH), f"{path}.change", f"shape {block.change.shape}", f"({n}, {REACH})"
            )
            _require(bool(np.isfinite(block.size)) and block.size >= 0.0, f"{path}.size", str(block.size), "0 or more")
        for name in ("floor", "scale"):
            value = getattr(self, name)
            _require(bool(np.isfinite(value)) and value >= 0.0, name, str(value), "a finite number of 0 or more")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Probe):
            return NotImplemented
        return self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    @property
    def n_steps(self) -> int:
        """Number of steps of the teacher."""
        return len(self.sigma) - 1

    # ---- closed forms

    @cached_property
    def vectors(self) -> Array:
        """`(n_steps + 1, n_steps + 1)` the square root ``B`` of the Gram matrix, one column per basis element."""
        values, axes = np.linalg.eigh((self.gram + self.gram.T) / 2.0)
        root: Array = np.sqrt(np.maximum(values, 0.0))[:, None] * axes.T
        return root

    @cached_property
    def outputs(self) -> Array:
        """`(n_steps, n_steps + 1)` vectors standing for ``v_0, ..., v_{n-1}``."""
        return np.ascontiguousarray(self.vectors[:, 1:].T)

    @cached_property
    def states(self) -> Array:
        """`(n_steps + 1, n_steps + 1)` vectors standing for the teacher's samples ``x_0, ..., x_n``."""
        moves = np.diff(self.sigma)[:, None] * self.outputs
        states: Array = self.vectors[:, 0] + np.concatenate([np.zeros((1, self.n_steps + 1)), np.cumsum(moves, axis=0)])
        return states

    @cached_property
    def state_products(self) -> Array:
        """`(n_steps + 1, n_steps + 1)` inner products of the teacher's samples."""
        products: Array = self.states @ self.states.T
        return products

    def residual(self, i: int, j: int, outputs: Sequence[int], *, free_base: bool = True) -> float:
        """Mean squared error left by the best linear fit of the step from ``x_i`` to ``x_j``.

        Args:
            i: where the step begins.
            j: where it ends.
            outputs: indices of the model outputs it may use.
            free_base: whether ``x_i`` has a coefficient of its own; otherwise that is 1.
        """
        columns = [self.outputs[k] for k in outputs]
        if free_base:
            columns.append(self.states[i])
        target = self.states[j] - self.states[i]
        if not columns:
            return float(target @ target)
        basis = np.array(columns).T
        basis = basis / np.maximum(np.linalg.norm(basis, axis=0), 1e-300)
        coefficients, *_ = np.linalg.lstsq(basis, target, rcond=1e-12)
        left = target - basis @ coefficients
        return float(left @ left)

    def jumps(self) -> Array:
        """`(n_steps + 1, n_steps + 1)` root mean square error of one Euler step from i to j, inf unless i < j."""
        n = self.n_steps
        costs = np.full((n + 1, n + 1), np.inf)
        for i in range(n):
            spans = np.subtract(self.sigma[i + 1 :], self.sigma[i])[:, None]
            costs[i, i + 1 :] = np.linalg.norm(self.states[i + 1 :] - self.states[i] - spans * self.outputs[i], axis=1)
        return costs

    def psnr(self, squared_error: float) -> float:
        """Peak signal-to-noise ratio (dB) that a mean squared error of final samples comes to."""
        return float(-10.0 * np.log10(max(self.scale * (squared_error + self.floor), 1e-300)))

    # ---- text

    def to_json(self) -> str:
        """The probe as text; `from_json` reads it back without loss."""
        blocks = [
            {"name": block.name, "change": _rows(block.change), "size": float(block.size)} for block in self.blocks
        ]
        document: dict[str, Any] = {
            "format": FORMAT, "version": VERSION, "sigma": list(self.sigma), "gram": _rows(self.gram),
            "l1": _rows(self.l1), "blocks": blocks, "floor": float(self.floor), "scale": float(self.scale),
        }  # fmt: skip
        if self.low_bit is not None:
            document["low_bit"] = _rows(self.low_bit)
        return json.dumps(document, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Probe:
        """The probe that ``text`` holds.

        Raises:
            StudyError: if it is not a probe of this version.
        """
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise StudyError(f"probe: found text that is not JSON ({error}), expected a probe.") from None
        head = [document.get(key) for key in ("format", "version")] if isinstance(document, dict) else document
        _require(head == [FORMAT, VERSION], "probe", repr(head)[:80], f"{[FORMAT, VERSION]}; measure it again")
        known = {field.name for field in fields(cls)} - {"low_bit"}
        found = set(document) - {"format", "version", "low_bit"}
        _require(found == known, "probe", f"the parts {sorted(found)}", f"{sorted(known)}")
        try:
            blocks = tuple(
                BlockProbe(name=item["name"], change=_array(item["change"]), size=float(item["size"]))
                for item in document["blocks"]
            )
            return cls(
                sigma=tuple(document["sigma"]), gram=_array(document["gram"]), l1=_array(document["l1"]), blocks=blocks,
                floor=float(document["floor"]), scale=float(document["scale"]),
                low_bit=_array(document["low_bit"]) if "low_bit" in document else None,
            )  # fmt: skip
        except (TypeError, KeyError, ValueError) as error:
            if isinstance(error, StudyError):
                raise
            raise StudyError(f"probe: found a part of the wrong kind ({error}), expected numbers.") from None


def _require(holds: bool, path: str, found: str, expected: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not holds:
        raise StudyError(f"probe.{path}: found {found}, expected {expected}.")


def _matrix(path: str, value: Any, shape: tuple[int, int]) -> Array:
    matrix = np.array(value, dtype=np.float64)
    _require(
        matrix.shape == shape, path, f"shape {matrix.shape}", f"{shape}, as sigma has {shape[0]} levels or one more"
    )
    _require(bool(np.isfinite(matrix).all()), path, "a number that is not finite", "finite numbers")
    matrix.setflags(write=False)
    return matrix


def _rows(matrix: Array) -> list[list[float | None]]:
    """Nested lists, with nothing where there is nan."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]


def _array(rows: Any) -> Array:
    return np.array([[np.nan if value is None else float(value) for value in row] for row in rows], dtype=np.float64)
