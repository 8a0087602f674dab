"""How low-bit layers are calibrated, as an object: which layers, which timesteps, how many samples, what decides.

A policy is written into the role of every table that was fitted under it (FORMAT.md M16), and read back from there by
`policy_of`. Three ship by name:

* ``all-steps``: rows from all steps alike, as Q-Diffusion (arXiv 2302.04304) and DiTAS (arXiv 2409.07756) take them;
* ``near-image``: steps drawn from a normal distribution whose middle lies towards the image, as in PTQ4DM (arXiv
  2211.15736);
* ``last-step``: rows from the last step alone, the way of models without timesteps, to compare with.

Does not know how inputs are recorded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Literal, get_args

from schedsearch.errors import UsageError
from schedsearch.schedule import Schedule

Steps = Literal["all", "last", "every", "normal"]
Decides = Literal["layer", "latent_error"]
Scales = Literal["dynamic", "static", "per-step"]

_MIDDLE, _WIDTH = 0.4, 0.5
"""Of PTQ4DM's normal distribution, where 0 is the image and 1 is noise."""

_NAME = re.compile(r"[a-z][a-z0-9-]*")
_GLOB = re.compile(r"[A-Za-z0-9_.*?\[\]!-]+")
_TEXT = re.compile(
    r"(?P<name>[a-z][a-z0-9-]*): layers (?P<layers>[A-Za-z0-9_.*?\[\]!-]+), "
    r"steps (?P<steps>all|last|normal|every (?P<every>\d+)), (?P<prompts>\d+) prompts, "
    r"(?P<rows>\d+) rows and (?P<judged>\d+) to judge, decided by (?P<decides>layer|latent_error)"
    r"(, (?P<scales>static|per-step) scales)?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPolicy:
    """How tables are fitted.

    Attributes:
        name: what it is called.
        layers: glob of the layers whose inputs are recorded, among those that a precision rule speaks of.
        steps: which denoising steps rows are taken from: all alike, the last, every k-th from the first on, or drawn
            from the normal distribution of PTQ4DM.
        every: the k of ``every``.
        prompts: calibration prompts.
        rows: rows (tokens) per layer that tables are fitted on.
        judged: further rows on which a table has to help.
        decides: what says which tables are kept: ``layer``, the output error of the layer on the judging rows; or
            ``latent_error``, with that error the final latents of the calibration prompts as well.
        scales: whether the scales of inputs follow from each input (``dynamic``, no table), or are one table entry, or
            one per step (PTQ4DM's static ranges; So 2023, arXiv 2306.02316).

    Raises:
        UsageError: on construction, if a value cannot be.
    """

    name: str
    layers: str = "*"
    steps: Steps = "all"
    every: int = 1
    prompts: int = 8
    rows: int = 1024
    judged: int = 256
    decides: Decides = "latent_error"
    scales: Scales = "dynamic"

    def __post_init__(self) -> None:
        """Check every value."""
        for field, holds, wanted in (
            ("name", _NAME.fullmatch(self.name), "small letters, digits and -"),
            ("layers", _GLOB.fullmatch(self.layers), "a glob"),
            ("steps", self.steps in get_args(Steps), f"one of {', '.join(get_args(Steps))}"),
            ("every", self.every >= 1, "1 or more"),
            ("prompts", self.prompts >= 1, "1 or more"),
            ("rows", self.rows >= 1, "1 or more"),
            ("judged", self.judged >= 0, "0 or more"),
            ("decides", self.decides in get_args(Decides), f"one of {', '.join(get_args(Decides))}"),
            ("scales", self.scales in get_args(Scales), f"one of {', '.join(get_args(Scales))}"),
        ):
            if not holds:
                raise UsageError(f"calibration policy: {field}: found {getattr(self, field)!r}, expected {wanted}.")

    def shares(self, n_steps: int) -> tuple[float, ...]:
        """Return which share of the rows comes from each step; they add up to 1.

        >>> CalibrationPolicy(name="a", steps="every", every=2).shares(4)
        (0.5, 0.0, 0.5, 0.0)
        """
        weights = [self._weight(step, n_steps) for step in range(n_steps)]
        return tuple(weight / sum(weights) for weight in weights)

    def _weight(self, step: int, n_steps: int) -> float:
        if self.steps == "last":
            return float(step == n_steps - 1)
        if self.steps == "every":
            return float(step % self.every == 0)
        if self.steps == "normal":
            time = (n_steps - step - 0.5) / n_steps
            return math.exp(-0.5 * ((time - _MIDDLE) / _WIDTH) ** 2)
        return 1.0

    def quotas(self, n_steps: int, running: Collection[int], rows: int) -> dict[int, int]:
        """Return how many of ``rows`` come from each step that runs; the largest remainders are rounded up.

        Args:
            n_steps: steps of the schedule.
            running: those that call the denoiser. The rows of one that does not come from the next before it, or else
                the next after it, that does.
            rows: how many in all.
        """
        if not running:
            return {}
        shares = dict.fromkeys(sorted(running), 0.0)
        for step, share in enumerate(self.shares(n_steps)):
            before = [other for other in shares if other <= step]
            shares[before[-1] if before else min(shares)] += share
        exact = {step: share * rows for step, share in shares.items()}
        found = {step: math.floor(value) for step, value in exact.items()}
        left = rows - sum(found.values())
        for step in sorted(exact, key=lambda step: (found[step] - exact[step], step))[:left]:
            found[step] += 1
        return found

    def covers(self, layer: str) -> bool:
        """Return whether a layer's inputs are recorded."""
        return fnmatchcase(layer, self.layers)

    @property
    def text(self) -> str:
        """The policy in one line, as roles of tables say it.

        >>> CalibrationPolicy(name="short", steps="every", every=4, prompts=2, rows=64, judged=8, decides="layer").text
        'short: layers *, steps every 4, 2 prompts, 64 rows and 8 to judge, decided by layer'
        """
        steps = f"every {self.every}" if self.steps == "every" else self.steps
        return (
            f"{self.name}: layers {self.layers}, steps {steps}, {self.prompts} prompts, {self.rows} rows and "
            f"{self.judged} to judge, decided by {self.decides}"
            f"{'' if self.scales == 'dynamic' else f', {self.scales} scales'}"
        )


POLICIES: Mapping[str, CalibrationPolicy] = MappingProxyType({
    policy.name: policy
    for policy in (
        CalibrationPolicy(name="all-steps", steps="all"),
        CalibrationPolicy(name="near-image", steps="normal"),
        CalibrationPolicy(name="last-step", steps="last"),
    )
})  # fmt: skip
"""The shipped policies by name."""


def find_policy(name: str) -> CalibrationPolicy:
    """Return a shipped policy.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in POLICIES:
        raise UsageError(f"--policy: found {name!r}, expected one of {', '.join(POLICIES)}, or all.")
    return POLICIES[name]


def parse_policy(text: str) -> CalibrationPolicy | None:
    """Return the policy that `CalibrationPolicy.text` put into words; ``None`` for other text."""
    match = _TEXT.fullmatch(text)
    if match is None:
        return None
    every = match["every"]
    made = CalibrationPolicy(
        name=match["name"],
        layers=match["layers"],
        steps="every" if every else match["steps"],  # type: ignore[arg-type] # the pattern knows the words
        prompts=int(match["prompts"]),
        rows=int(match["rows"]),
        judged=int(match["judged"]),
        decides=match["decides"],  # type: ignore[arg-type]
        scales=match["scales"] or "dynamic",  # type: ignore[arg-type]
    )
    return replace(made, every=int(every)) if every else made


def policy_of(schedule: Schedule) -> CalibrationPolicy | None:
    """Return the policy under which a schedule's tables of layers were fitted; ``None`` if it does not say."""
    for tensor in schedule.tables.tensors if schedule.tables is not None else ():
        found = parse_policy(tensor.role.partition("; ")[2])
        if found is not None:
            return found
    return None
