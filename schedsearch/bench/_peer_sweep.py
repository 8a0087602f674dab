"""The settings of other libraries, tried on a few calibration prompts: what works, how fast, how well, or why not.

Peers decide while they run, so nothing of theirs is predicted: speed and quality come from the same calls, at batch 1
and beside the plain run. This module does not know which libraries there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import fmean, median
from typing import Any

from schedsearch.bench._log import Log
from schedsearch.bench._peers import Host, Peer, Setting, muted
from schedsearch.bench._sweep import far_first, never
from schedsearch.evaluate import Contender, Look, SideBySide, Turn, told
from schedsearch.optimize import Display
from schedsearch.study import Absent, Cause

TOGETHER = 4
"""Settings that are timed in one round."""

GIVE_UP = 2
"""Settings that fail alike before the others of a peer are left out."""

NO_WORK_SAVED = 0.999

TYPICAL = 0.7
"""Time of a setting over the plain run's, with the plain runs around it, while settings are tried."""

MAX_WARNING = 160
"""Characters of a library's warning that are kept."""


@dataclass(frozen=True, kw_only=True)
class PeerEntry:
    """One setting of one peer.

    Attributes:
        family: name of the peer.
        setting: in words and options.
        speedup: measured; the median over the prompts of the sweep.
        score: PSNR in dB on them.
        look: what it did in its first run.
    """

    family: str
    setting: Setting
    speedup: float
    score: float | None
    look: Look

    @property
    def key(self) -> str:
        """What makes it another run than its neighbours."""
        return self.setting.words

    @property
    def is_idle(self) -> bool:
        """Whether it changed nothing and saved no work."""
        return not self.look.changes and self.look.work >= NO_WORK_SAVED


@dataclass(frozen=True, kw_only=True)
class PeerSweep:
    """What came of a sweep.

    Attributes:
        entries: settings that ran and changed something.
        absent: peers and settings that did not, and why.
        swept: settings that ran, by peer.
    """

    entries: tuple[PeerEntry, ...] = ()
    absent: tuple[Absent, ...] = ()
    swept: Mapping[str, int] = field(default_factory=dict)


def contender(name: str, peer: Peer, setting: Setting, host: Host) -> Contender:
    """Returns a peer's setting as a way to run the pipeline."""
    return Contender(
        name=f"{name}: {setting.words}",
        steps=host.steps,
        prepare=partial(peer.applied, setting, host),
        is_compiled=peer.is_kept,
    )


@dataclass(frozen=True, kw_only=True)
class PeerTrials:
    """Tries settings of peers; what the log remembers is not tried again.

    Attributes:
        host: what peers may know of the model.
        runs: runs them on calibration prompts.
        log: where findings are kept.
        prompts: how many calibration prompts.
        display: where progress goes.
        is_over: tells when time is up; what is left by then has a record that says so.
    """

    host: Host
    runs: SideBySide
    log: Log
    prompts: int
    display: Display
    is_over: Callable[[], bool] = never

    def sweep(self, chosen: Mapping[str, Peer]) -> PeerSweep:
        """Returns what came of every setting of these peers."""
        absent: list[Absent] = []
        plans: dict[str, Sequence[Setting]] = {}
        for name, peer in chosen.items():
            cause, reason, settings = self._settings(peer)
            if reason:
                absent.append(Absent(family=name, setting="", cause=cause, reason=reason))
            else:
                plans[name] = settings
        self._announce(plans)
        left = self._try_all(plans, chosen)
        entries: list[PeerEntry] = []
        swept: dict[str, int] = {}
        for name, settings in plans.items():
            found, missing = self._outcome(name, chosen[name], settings, left[name])
            swept[name] = len(found)
            entries += found
            absent += missing
        idle = {each.family for each in absent if each.cause == "no effect"}
        kept = tuple(entry for entry in entries if entry.family not in idle)
        return PeerSweep(entries=kept, absent=tuple(absent), swept=swept)

    def _try_all(self, plans: Mapping[str, Sequence[Setting]], chosen: Mapping[str, Peer]) -> Counter[str]:
        """Tries what the log does not have, some of every peer in turns; returns how many time was too short for."""
        groups = []
        for place, (name, settings) in enumerate(plans.items()):
            order = [settings[i] for i in far_first(len(settings))]
            parts = [order[start : start + TOGETHER] for start in range(0, len(order), TOGETHER)]
            groups += [(turn, place, name, part) for turn, part in enumerate(parts)]
        left: Counter[str] = Counter()
        with self.display.stage("trying other libraries", sum(map(len, plans.values()))) as advance:
            done = 0
            for _, _, name, part in sorted(groups, key=lambda group: group[:2]):
                advance(done, None, chosen[name].title)
                untried = [setting for setting in part if _key(name, setting) not in self.log]
                if untried and self.is_over():
                    left[name] += len(untried)
                else:
                    self._try(name, chosen[name], untried, self._errors(name, plans[name]))
                done += len(part)
        return left

    def _errors(self, name: str, settings: Sequence[Setting]) -> list[str]:
        """What each setting that was tried failed with, empty where it did not."""
        records: list[Any] = [self.log.get(_key(name, setting)) for setting in settings]
        return [record["look"]["error"] for record in records if record is not None]

    def _announce(self, plans: Mapping[str, Sequence[Setting]]) -> None:
        """Says how much there is to do, and about how long that takes."""
        left = sum(_key(name, setting) not in self.log for name, settings in plans.items() for setting in settings)
        if left:
            minutes = left * (self.prompts + 1) * TYPICAL * self.runs.plain_seconds() / 60.0
            self.display.line(f"{left} settings of other libraries to try: about {minutes:.1f} minutes")

    def _settings(self, peer: Peer) -> tuple[Cause, str, Sequence[Setting]]:
        """Why there are none, and of what kind that is; or the settings."""
        try:
            reason = peer.why_not(self.host)
            if reason:
                return ("not installed" if "not installed" in reason else "not applicable"), reason, ()
            return "failed", "", peer.settings(self.host)
        except Exception as error:  # noqa: BLE001 - whatever another library raises is a finding
            return "failed", told(error), ()

    def _outcome(
        self, name: str, peer: Peer, settings: Sequence[Setting], left: int
    ) -> tuple[list[PeerEntry], tuple[Absent, ...]]:
        """The settings of one peer that ran, and what did not; ``left`` are those that time was too short for."""
        found: list[PeerEntry] = []
        absent: list[Absent] = []
        warned: list[str] = []
        for setting in settings:
            record: Any = self.log.get(_key(name, setting))
            if record is None:  # time was up, or its neighbours failed alike
                continue
            look = Look(**record["look"])
            warned += record["warned"]
            if look.error:
                absent.append(Absent(family=name, setting=setting.words, cause="failed", reason=look.error))
            else:
                numbers = {"speedup": record["speedup"], "score": record["score"]}
                found.append(PeerEntry(family=name, setting=setting, look=look, **numbers))
        # Compiling changes how, not what, is computed.
        idle = () if peer.is_kept else no_effect(name, found, warned)
        untried = f"time was up with {left} of {len(settings)} settings untried"
        short = (Absent(family=name, setting="", cause="not reached", reason=untried),) if left else ()
        return found, (*together(absent, found), *short, *idle)

    def _try(self, name: str, peer: Peer, settings: Sequence[Setting], before: Sequence[str]) -> None:
        """Runs the settings and puts what they did into the log; ``before`` says what earlier ones failed with."""
        runners: dict[str, tuple[Setting, Contender]] = {}
        looks: dict[str, tuple[Look, list[str]]] = {}
        for setting in settings:
            errors = [*before, *(look.error for look, _ in looks.values())]
            if len(errors) >= GIVE_UP and errors[0] and len(set(errors)) == 1:
                break
            runner = contender(name, peer, setting, self.host)
            with muted() as heard:
                look = self.runs.look(0, runner)
            runners[runner.name] = setting, runner
            looks[runner.name] = look, list(heard)
        running = [runner for key, (_, runner) in runners.items() if not looks[key][0].error]
        turns: dict[str, list[Turn]] = {key: [] for key in runners}
        for index in range(self.prompts if running else 0):
            with muted():
                for key, turn in self.runs.round(index, running).items():
                    turns[key].append(turn)
        for key, (setting, _) in runners.items():
            self.log.put(_key(name, setting), _record(*looks[key], turns[key]))


def _key(name: str, setting: Setting) -> str:
    return f"sweep {name}: {setting.words}"


def _record(look: Look, heard: list[str], turns: Sequence[Turn]) -> Any:
    """What a setting did, for the log."""
    error = look.error or next((turn.error for turn in turns if turn.error), "")
    return {
        "look": {**asdict(look), "error": error},
        "warned": heard,
        "speedup": 0.0 if error else median(turn.ratio for turn in turns),
        "score": None if error else fmean(turn.scores["psnr"] for turn in turns),
    }


def together(absent: Sequence[Absent], found: Sequence[PeerEntry]) -> tuple[Absent, ...]:
    """Returns what is missing of a peer, as one record where all of its settings failed alike."""
    reasons = {each.reason for each in absent}
    if found or len(reasons) != 1 or absent[0].cause != "failed":
        return tuple(absent)
    return (Absent(family=absent[0].family, setting="", cause="failed", reason=absent[0].reason),)


def no_effect(name: str, found: Sequence[PeerEntry], warned: Sequence[str] = ()) -> tuple[Absent, ...]:
    """Returns a record that says so where no setting of a peer changed a bit or saved any work; else nothing."""
    if not found or not all(entry.is_idle for entry in found):
        return ()
    which = f"all {len(found)} settings" if len(found) > 1 else "it"
    said = f"; it warns: {warned[0][:MAX_WARNING]}" if warned else ""
    reason = f"{which} computed everything and gave the plain run's pictures, bit for bit{said}"
    return (Absent(family=name, setting="", cause="no effect", reason=reason),)
