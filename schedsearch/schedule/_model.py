"""The schedule itself: one frozen dataclass that is valid whenever it exists.

``FORMAT.md`` is the specification; ``_validate.py`` holds its rules, ``_codec.py`` its reader and writer. This module
does not know how a schedule is run or found.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from schedsearch.schedule import _validate
from schedsearch.schedule._canonical import content_id
from schedsearch.schedule._correction import check_corrections
from schedsearch.schedule._parts import Measurement, ModelRef, PrecisionRule, Provenance, Solver, Tables
from schedsearch.schedule._vocabulary import COMPUTE

NOWHERE = Provenance()
"""The origin of a schedule that states none."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A complete plan for one denoising run.

    Attributes:
        sigma: `(n_steps + 1,)` post-shift noise levels, strictly decreasing, the last may be 0.
        solver: `(n_steps,)` how each step is taken.
        ops: rows ``(name, row)``; a row has one character of `OPS` per step. ``model`` is the whole denoiser, other
            names are modules. Rows that only compute are left out; the order is canonical.
        guidance: `(n_steps,)` scale per step, ``None`` for a step without an unconditional pass; ``None`` as a whole
            leaves guidance to the pipeline.
        precision: ordered rules, first match wins.
        pruned: modules removed for the whole run, in natural order.
        tables: side tensors, or ``None``; steps of family ``table`` need them to run, but not to be searched.
        model: the denoiser this was made for.
        measured: results; outside the id.
        provenance: origin; outside the id.

    Raises:
        ScheduleFormatError: on construction, if any rule of FORMAT.md is broken.
    """

    sigma: tuple[float, ...]
    solver: tuple[Solver, ...]
    model: ModelRef
    ops: tuple[tuple[str, str], ...] = ()
    guidance: tuple[float | None, ...] | None = None
    precision: tuple[PrecisionRule, ...] = ()
    pruned: tuple[str, ...] = ()
    tables: Tables | None = None
    measured: tuple[Measurement, ...] = ()
    provenance: Provenance = NOWHERE

    def __post_init__(self) -> None:
        """Run every rule and store the canonical form, so that equal content compares equal."""
        store = object.__setattr__  # the one moment at which a frozen record may still change
        store(self, "sigma", _validate.sigma("steps.sigma", self.sigma))
        store(self, "tables", _validate.tables("tables", self.tables))
        _validate.solvers("steps.solver", self.solver, self.n_steps)
        _validate.solver_tensor("tables", self.tables, self.solver)
        store(self, "model", _validate.model("model", self.model))
        store(self, "ops", _validate.ops("ops", self.ops, self.n_steps))
        store(self, "guidance", _validate.guidance("guidance", self.guidance, self.n_steps))
        store(self, "precision", _validate.precision("precision", self.precision))
        store(self, "pruned", _validate.pruned("pruned", self.pruned, self.ops))
        check_corrections("tables", self.tables, self.ops, self.n_steps)
        _validate.measured("measured", self.measured)
        _validate.provenance("provenance", self.provenance)

    @cached_property
    def id(self) -> str:
        """``sha256:<hex>`` of the canonical bytes: the same for everything that makes the same images."""
        return content_id(self)

    @property
    def unfitted(self) -> bool:
        """Whether steps of family ``table`` still wait for their coefficients: a plan, which no runtime can follow."""
        return _validate.solver_tensor_index(self.tables) is None and _validate.table_order(self.solver) > 0

    @property
    def arithmetic(self) -> tuple[tuple[PrecisionRule, ...], str]:
        """What tells schedules apart by their low-bit layers: the rules, and the hash of the side file if those may
        read it. Solvers' tables are no part of it where there are no rules.
        """
        held = self.tables.sha256 if self.precision and self.tables is not None else ""
        return self.precision, held

    @property
    def n_steps(self) -> int:
        """Number of denoising steps."""
        return len(self.sigma) - 1

    def row(self, name: str) -> str:
        """The row of ``name``: one character per step, all compute if the schedule does not mention it."""
        return self._rows.get(name, COMPUTE * self.n_steps)

    @cached_property
    def _rows(self) -> dict[str, str]:
        return dict(self.ops)

    def _repr_html_(self) -> str:
        """The map of operations and the measurements, as notebooks show them."""
        from schedsearch.schedule._html import schedule_html

        return schedule_html(self)
