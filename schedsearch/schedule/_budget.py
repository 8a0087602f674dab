"""What a schedule may cost, as a person writes it: ``4x``, ``800ms``, ``60%macs``; and memory: ``8GB``.

This module does not know schedules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, TypeAlias

from schedsearch.errors import UsageError
from schedsearch.schedule._checks import quote

BudgetKind: TypeAlias = Literal["speedup", "latency_ms", "macs_fraction"]

_BUDGET = re.compile(r"(\d{1,40}(?:\.\d{1,40})?|\.\d{1,40})\s*(x|×|ms|s|%\s*macs)", re.IGNORECASE)
_EXAMPLES = "such as 4x (four times as fast), 800ms or 1.5s (per call), or 60%macs (of the plain run's operations)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A limit on cost.

    Attributes:
        kind: name of the measurement it limits: ``speedup`` (at least ``value``), ``latency_ms`` or ``macs_fraction``
            (at most ``value``).
        value: the limit: a ratio, milliseconds, or a fraction of 1.
    """

    kind: BudgetKind
    value: float

    def met_by(self, measured: float) -> bool:
        """Whether a measurement of this kind keeps the budget."""
        return measured >= self.value if self.kind == "speedup" else measured <= self.value

    def __str__(self) -> str:
        """The budget as `parse_budget` reads it, to the last digit."""
        exact = Decimal(repr(float(self.value)))
        if self.kind == "macs_fraction":
            exact = exact.scaleb(2)
        digits = f"{exact:f}"
        if "." in digits:
            digits = digits.rstrip("0").rstrip(".")
        return digits + {"speedup": "x", "latency_ms": "ms", "macs_fraction": "%macs"}[self.kind]


def parse_budget(text: str) -> Budget:
    """The budget that ``text`` writes.

    >>> parse_budget("4x")
    Budget(kind='speedup', value=4.0)
    >>> parse_budget("1.5s").value, parse_budget("60%macs").value
    (1500.0, 0.6)

    Raises:
        UsageError: if it is none of the three forms, a speedup below 1, no time at all, or not within 0 to 100 %.
    """
    match = _BUDGET.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise UsageError(f"budget: found {quote(text)}, expected a number with its unit, {_EXAMPLES}.")
    number, unit = match[1], match[2].lower()
    # The unit moves the decimal point in the text, so that no digit is lost to a division or a product.
    if unit in ("x", "×"):
        budget = Budget(kind="speedup", value=float(number))
        legal = budget.value >= 1
    elif unit in ("ms", "s"):
        budget = Budget(kind="latency_ms", value=float(number if unit == "ms" else f"{number}e3"))
        legal = budget.value > 0
    else:
        budget = Budget(kind="macs_fraction", value=float(f"{number}e-2"))
        legal = 0 < budget.value <= 1
    if not legal:
        wanted = {"speedup": "1x or more", "latency_ms": "more than 0", "macs_fraction": "above 0 and up to 100%macs"}
        raise UsageError(f"budget: found {quote(text)}, expected {wanted[budget.kind]}. Write a number {_EXAMPLES}.")
    return budget


_BYTES = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*([kmgt]?)(i?)b", re.IGNORECASE)
_POWERS = ("", "k", "m", "g", "t")


def parse_bytes(text: str) -> int:
    """The number of bytes that ``text`` writes, rounded down.

    >>> parse_bytes("8GB"), parse_bytes("1.5 GiB"), parse_bytes("512 kB")
    (8000000000, 1610612736, 512000)

    Raises:
        UsageError: if it is no number with a unit, or no byte at all.
    """
    match = _BYTES.fullmatch(text.strip()) if isinstance(text, str) else None
    number = (
        Decimal(match[1]) * (1024 if match[3] else 1000) ** _POWERS.index(match[2].lower()) if match else Decimal(0)
    )
    if match is None or (match[3] and not match[2]) or int(number) < 1:
        raise UsageError(
            f"--max-memory: found {quote(text)}, expected a number with its unit, such as 8GB, 500MB or 7.5GiB."
        )
    return int(number)
