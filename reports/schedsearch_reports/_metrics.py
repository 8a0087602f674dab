"""How each measured number is called and shown, and the symbols and colours of families of runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from schedsearch.schedule import Measurement
from schedsearch_reports._data import Family, Metric, Value

CALLS = "denoiser_calls"
"""Not a measurement of its own in a study, but counted there."""

PREDICTED = "predicted_speedup"


def _speed(name: str, label: str, short: str, unit: str, *, better: str, digits: int, scale: float = 1.0) -> Metric:
    return Metric(
        name=name, label=label, short=short, unit=unit, better=better, axis="speed", digits=digits, scale=scale
    )  # fmt: skip


def _quality(
    name: str, label: str, short: str, unit: str, *, better: str, digits: int = 4, is_relative: bool = True
) -> Metric:
    return Metric(
        name=name, label=label, short=short, unit=unit, better=better, axis="quality", digits=digits,
        is_relative=is_relative,
    )  # fmt: skip


def _size(name: str, label: str, short: str) -> Metric:
    return Metric(
        name=name, label=label, short=short, unit="MB", better="min", axis="none", digits=2, scale=1e-6
    )  # fmt: skip


_KNOWN = {
    metric.name: metric
    for metric in (
        _speed("speedup", "Speed-up of the whole call, measured", "Speed-up", "×", better="max", digits=2),
        _speed(PREDICTED, "Speed-up, predicted", "Speed-up, predicted", "×", better="max", digits=2),
        _speed("latency_ms", "Time per picture", "Time", "ms", better="min", digits=1),
        _speed(CALLS, "Denoiser calls per picture", "Calls", "", better="min", digits=0),
        _speed(
            "macs_fraction", "Multiply-accumulates, of the full run's", "MACs", "%", better="min", digits=1, scale=100.0
        ),
        _quality("psnr", "PSNR against the full run", "PSNR", "dB", better="max", digits=2),
        _quality("ssim", "SSIM against the full run", "SSIM", "", better="max"),
        _quality("lpips", "LPIPS against the full run", "LPIPS", "", better="min"),
        _quality("latent_error", "Relative latent error against the full run", "Latent error", "", better="min"),
        _size("checkpoint_bytes", "Denoiser's checkpoint, predicted", "Checkpoint"),
        _size("peak_bytes", "Weights and caches at their peak, predicted", "Peak"),
    )
}

_THROUGH_A_NETWORK = {
    "lpips": "LPIPS", "clip": "CLIP score", "image_reward": "ImageReward", "fid": "FID", "kid": "KID",
}  # fmt: skip
"""What is shown of a metric that sees through a network, which its name says in square brackets."""

_CONVERGED = "converged_"


def metric_of(name: str, unit: str, better: str) -> Metric:
    """Return how a measured number is shown; of one that is not known here, as it calls itself."""
    if name in _KNOWN:
        return _KNOWN[name]
    plain = name.removeprefix(_CONVERGED)
    if plain != name and plain in _KNOWN:
        known = _KNOWN[plain]
        label = known.label.replace("the full run", "a run of many more steps")
        return replace(known, name=name, label=label, short=f"{known.short}, converged", is_relative=False)
    base, _, net = plain.removesuffix("]").partition("[")
    if net and base in _THROUGH_A_NETWORK:
        label = _THROUGH_A_NETWORK[base]
        against = ", converged" if plain != name else ""
        # The full run scores what it scores by its prompt; of what it is compared with it is the best there is.
        is_relative = base in ("lpips", "fid", "kid") and not against
        return _quality(
            name, f"{label} through {net}{against}", f"{label}{against}", "", better=better, is_relative=is_relative
        )
    words = name.replace("_", " ")
    shown = "" if unit == "1" else unit
    return _quality(name, words[:1].upper() + words[1:], words, shown, better=better, is_relative=False)


def metrics_of(measured: Iterable[Measurement]) -> tuple[Metric, ...]:
    """Return each metric once: speeds first, then qualities in the order in which they come, then the rest."""
    found = {record.metric: metric_of(record.metric, record.unit, record.better) for record in measured}
    order = {"speed": 0, "quality": 1, "none": 2}
    speeds = list(_KNOWN)
    return tuple(
        sorted(found.values(), key=lambda m: (order[m.axis], speeds.index(m.name) if m.axis == "speed" else 0))
    )


def value_of(record: Measurement) -> Value:
    """Return a measurement as the report keeps it."""
    return Value(metric=record.metric, value=record.value, low=record.low, high=record.high, n=record.n)


def shown(metric: Metric, value: float) -> str:
    """Return a number as people read it, with its unit.

    >>> shown(metric_of("speedup", "x", "max"), 4.0398), shown(metric_of("psnr", "dB", "max"), 43.1213)
    ('4.04×', '43.12 dB')
    """
    number = f"{value * metric.scale:.{metric.digits}f}"
    gap = "" if metric.unit in ("", "×") else " "
    return f"{number}{gap}{metric.unit}"


OURS = Family(name="schedule", label="searched schedules", colour=0, symbol="circle")
FEWER = Family(name="fewer steps", label="plain run, fewer steps", colour=1, symbol="square")
FULL = Family(name="full", label="full run", colour=1, symbol="diamond")

_SYMBOLS = ("triangle", "cross", "star", "wye", "times", "plus", "asterisk", "hexagon")


def peer_family(name: str, label: str, place: int) -> Family:
    """Return how the peer numbered ``place`` is drawn; where colours come again, shapes tell peers apart."""
    return Family(name=name, label=label, colour=2 + place % 6, symbol=_SYMBOLS[place % len(_SYMBOLS)])
