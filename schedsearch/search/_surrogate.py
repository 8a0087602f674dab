"""Predictors that rank schedules nobody has measured yet, and how good they are at it.

`LstmRanker` is the predictor of OMS-DPM (Liu 2023, arXiv 2306.08860), from the group of S^3: a recurrent network over
steps, trained on pairs to put the better one first. `KernelRanker` is Gaussian process regression on `Features`; it
takes milliseconds, predicts values and says how sure it is. Both are functions of what they were fitted on, and leave
global random states alone. This module alone of its package may import torch, and does so when an `LstmRanker` is
fitted. It does not know where scores come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from schedsearch.errors import UsageError
from schedsearch.schedule import MODEL_ROW, OPS, Schedule
from schedsearch.schedule._vocabulary import MAX_ORDER
from schedsearch.search._features import WORDS, Features, cells_of, solver_table
from schedsearch.space import PrecisionAxis

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float64]


class Ranker(Protocol):
    """Puts schedules in order."""

    def fit(self, schedules: Sequence[Schedule], scores: Array) -> None:
        """Learn from ``scores`` `(n,)`, lower is better; earlier fits are forgotten."""
        ...

    def rank(self, schedules: Sequence[Schedule]) -> Array:
        """Scores `(n,)`, lower is better; only their order means something."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Agreement of a predictor's order with the true one.

    Attributes:
        spearman: rank correlation, 1 is the same order.
        kendall: agreeing minus disagreeing pairs, as a share of all pairs that differ (tau-b).
        n: how many schedules were compared, none of which the predictor was fitted on.
        n_fitted: how many it was fitted on.
        group: denoiser calls of the schedules compared; 0 for mixed ones.
    """

    spearman: float
    kendall: float
    n: int
    n_fitted: int = 0
    group: int = 0

    def __str__(self) -> str:
        """One line for people."""
        group = f"{self.group} calls: " if self.group else ""
        fitted = f", fitted on {self.n_fitted}" if self.n_fitted else ""
        return f"{group}Spearman {self.spearman:+.2f}, Kendall {self.kendall:+.2f} on {self.n} unseen schedules{fitted}"


def quality(predicted: Array, true: Array, *, n_fitted: int = 0, group: int = 0) -> Quality:
    """How well the order of ``predicted`` agrees with that of ``true``, both `(n,)`; 0 where either is constant.

    >>> str(quality(np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.9])))
    'Spearman +1.00, Kendall +1.00 on 3 unseen schedules'
    """
    spearman = kendall = 0.0
    if len(np.unique(predicted)) > 1 and len(np.unique(true)) > 1:
        spearman = float(np.corrcoef(_ranks(predicted), _ranks(true))[0, 1])
        signs = [np.sign(_ranks(values)[:, None] - _ranks(values)[None, :]) for values in (predicted, true)]
        kendall = float((signs[0] * signs[1]).sum() / np.sqrt((signs[0] ** 2).sum() * (signs[1] ** 2).sum()))
    return Quality(spearman=spearman, kendall=kendall, n=len(true), n_fitted=n_fitted, group=group)


def _ranks(values: Array) -> Array:
    """Places in order, equal values at their mean place."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    out: Array = (last - 0.5 * (counts - 1))[place]
    return out


# ---- Gaussian process regression


class KernelRanker:
    """Gaussian process regression on schedule features; several objectives at once.

    The kernel is a radial part plus a linear one. Their weight and width, and the noise, are those of the largest
    marginal likelihood on a subset of the records, for each objective on its own. Keep one instance: it remembers the
    features of schedules.
    """

    def __init__(self, *, limit: int = 500, optimism: float = 0.0, axis: PrecisionAxis | None = None) -> None:
        """A predictor that is fitted on the ``limit`` best records and no more.

        `rank` puts a schedule forward by ``optimism`` standard deviations: what is hardly known may be good. Number
        formats are looked at if their ``axis`` is given.
        """
        self._axis = axis
        self._limit = limit
        self._optimism = optimism
        self._features: Features | None = None
        self._rows: dict[str, Array] = {}
        self._shape: tuple[int, ...] = ()

    def fit(self, schedules: Sequence[Schedule], scores: Array) -> None:
        """Learn from ``scores`` `(n,)` or `(n, n_objectives)`; what is not finite counts as the best or worst seen."""
        scores = np.asarray(scores, dtype=np.float64)
        self._shape = scores.shape[1:]
        targets = np.column_stack([_bounded(column) for column in scores.reshape(len(scores), -1).T])
        if len(schedules) > self._limit:
            merit = np.argsort(np.argsort(targets, axis=0), axis=0).min(axis=1)
            kept = np.sort(np.argsort(merit, kind="stable")[: self._limit])
            schedules, targets = [schedules[i] for i in kept], targets[kept]
        vectors = self._known(schedules)
        self._low, self._scale = vectors.mean(axis=0), vectors.std(axis=0)
        self._used = self._scale > 1e-9
        points = self._scaled(vectors)
        self._model = _Processes(points, targets)

    def predict(self, schedules: Sequence[Schedule]) -> tuple[Array, Array]:
        """Mean and standard deviation of the scores of ``schedules``, shaped like the scores it was fitted on."""
        if self._features is None:
            raise UsageError("KernelRanker.predict: found no records, expected a fit first.")
        points = self._scaled(self._features.of(schedules))
        means, spreads = self._model.predict(points)
        shape = (len(schedules), *self._shape)
        return means.reshape(shape), spreads.reshape(shape)

    def rank(self, schedules: Sequence[Schedule]) -> Array:
        """Predicted mean of the first objective, less the optimism."""
        mean, spread = self.predict(schedules)
        return (mean - self._optimism * spread).reshape(len(schedules), -1)[:, 0]

    def _known(self, schedules: Sequence[Schedule]) -> Array:
        """Features of ``schedules``, computed once while their vocabulary stays the same."""
        features = Features(schedules, self._axis)
        if self._features is None or features != self._features:
            self._features, self._rows = features, {}
        new = {schedule.id: schedule for schedule in schedules if schedule.id not in self._rows}
        if new:
            self._rows.update(zip(new, self._features.of(list(new.values())), strict=True))
        return np.array([self._rows[schedule.id] for schedule in schedules])

    def _scaled(self, vectors: Array) -> Array:
        """Standardised features that differ among the records; far beyond what was seen counts as a bit beyond."""
        used = self._used
        out: Array = np.clip((vectors[:, used] - self._low[used]) / self._scale[used], -4.0, 4.0)
        return out


class _Shape(NamedTuple):
    """What is chosen per objective: the kernel's ``width``, the weight of its ``linear`` part, and the ``noise``."""

    width: float
    linear: float
    noise: float


class _Processes:
    """Regressions of several objectives over the same points."""

    WIDTHS = (0.7, 1.2, 2.0)
    LINEARS = (0.1, 100.0)
    NOISES = (1e-4, 1e-3, 1e-2, 1e-1)
    SUBSET = 96

    def __init__(self, points: Array, targets: Array) -> None:
        self._points = points
        self._mean, self._spread = targets.mean(axis=0), targets.std(axis=0)
        y = (targets - self._mean) / np.where(self._spread > 0.0, self._spread, 1.0)
        subset = np.linspace(0, len(y) - 1, min(len(y), self.SUBSET)).astype(int)
        shapes, variances = self._likeliest(points[subset], y[subset])
        self._sure = self._spread * np.sqrt(variances)
        self._fits = []
        products = _products(points, points)
        from scipy.linalg import cho_factor, cho_solve

        for shape in dict.fromkeys(shapes):
            members = [i for i, own in enumerate(shapes) if own == shape]
            kernel = _kernel(products, shape.width, shape.linear)
            kernel[np.diag_indices_from(kernel)] += shape.noise
            factor, _ = cho_factor(kernel, lower=True, overwrite_a=True, check_finite=False)
            weights = cho_solve((factor, True), y[:, members], check_finite=False)
            self._fits.append((shape, members, weights, factor.astype(np.float32)))

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Means and standard deviations `(n, n_objectives)`."""
        from scipy.linalg import solve_triangular

        products = _products(points, self._points)
        squares = (points**2).sum(axis=1) / max(1, points.shape[1])
        mean, variance = np.empty((len(points), len(self._mean))), np.empty((len(points), len(self._mean)))
        for shape, members, weights, factor in self._fits:
            cross = _kernel(products, shape.width, shape.linear)
            mean[:, members] = cross @ weights
            thin = cross.T.astype(np.float32)  # enough for a spread, and twice as fast
            solved = solve_triangular(factor, thin, lower=True, check_finite=False)
            left = 1.0 + shape.linear * squares - np.einsum("ij,ij->j", solved, solved)
            variance[:, members] = np.maximum(left, shape.noise)[:, None]
        return self._mean + self._spread * mean, self._sure * np.sqrt(variance)

    def _likeliest(self, points: Array, y: Array) -> tuple[list[_Shape], Array]:
        """Per objective the shape under which ``y`` is most likely, and the overall variance, likeliest for it.

        One decomposition per kernel serves all objectives and noises.
        """
        products, columns = _products(points, points), np.arange(y.shape[1])
        best, shapes, variances = (
            np.full(y.shape[1], -np.inf),
            [_Shape(1.2, 0.1, 1e-2)] * y.shape[1],
            np.ones(y.shape[1]),
        )
        for width in self.WIDTHS:
            for linear in self.LINEARS:
                values, vectors = np.linalg.eigh(_kernel(products, width, linear))
                power = (vectors.T @ y) ** 2
                spectrum = np.maximum(values, 0.0)[:, None, None] + np.array(self.NOISES)[:, None]
                variance = np.maximum((power[:, None, :] / spectrum).mean(axis=0), 1e-12)
                likelihood = -0.5 * (len(y) * np.log(variance) + np.log(spectrum).sum(axis=0))
                place = likelihood.argmax(axis=0)
                for i in np.flatnonzero(likelihood[place, columns] > best):
                    best[i] = likelihood[place[i], i]
                    shapes[i] = _Shape(width, linear, self.NOISES[place[i]])
                    variances[i] = variance[place[i], i]
        return shapes, variances


def _products(a: Array, b: Array) -> tuple[Array, Array]:
    """Inner products and distances `(len(a), len(b))`, per feature."""
    n_features = max(1, a.shape[1])
    inner = a @ b.T / n_features
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :]
    return inner, np.sqrt(np.maximum(squares / n_features - 2.0 * inner, 0.0))


def _kernel(products: tuple[Array, Array], width: float, linear: float) -> Array:
    """Matern 3/2, as landscapes of repaired plans are not smooth, plus a linear part."""
    inner, distance = products
    reach = distance * (3.0**0.5 / width)
    out: Array = (1.0 + reach) * np.exp(-reach) + linear * inner
    return out


def _bounded(scores: Array) -> Array:
    """``scores`` with infinite ones at the best or worst seen, none beyond three quartile distances of the median."""
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return np.zeros_like(scores)
    low, middle, high = np.quantile(finite, (0.25, 0.5, 0.75))
    reach = 3.0 * (high - low) if high > low else np.inf
    bounded = np.clip(np.where(np.isnan(scores), np.inf, scores), finite.min(), finite.max())
    out: Array = np.clip(bounded, middle - reach, middle + reach)
    return out


# ---- the recurrent network


@dataclass(frozen=True, slots=True, kw_only=True)
class LstmConfig:
    """Options of `LstmRanker`; the defaults are those of OMS-DPM.

    Attributes:
        sinusoid: numbers a noise level becomes.
        step_width: width of the layers for noise level and solver.
        op_width: width of what stands for a step's ops.
        order_width: width of the embedding of the order.
        hidden: width of the recurrent layer.
        head: widths of the layers after it.
        margin: by how much the better of a pair should be ahead.
        min_gap: least difference of a pair that teaches something, in standard deviations of the scores. Published
            0.25 is in units of FID.
        pairs: pairs per schedule and epoch.
        batch: pairs per update, and ``epochs`` passes, with Adam at ``rate``.
        epochs: passes over the records.
        rate: step size of Adam.
    """

    sinusoid: int = 128
    step_width: int = 64
    op_width: int = 32
    order_width: int = 16
    hidden: int = 128
    head: tuple[int, ...] = (200, 200, 200)
    margin: float = 1.0
    min_gap: float = 0.25
    pairs: int = 2
    batch: int = 512
    epochs: int = 1000
    rate: float = 1e-3

    @classmethod
    def small(cls) -> LstmConfig:
        """A size that trains in about a second on a few hundred records."""
        return cls(
            sinusoid=8, step_width=32, op_width=8, order_width=8, hidden=48, head=(64,), pairs=4, epochs=80, rate=5e-3
        )


class LstmRanker:
    """The recurrent predictor of OMS-DPM; every fit starts anew from the same weights."""

    def __init__(self, *, seed: int, config: LstmConfig | None = None) -> None:
        self._seed = seed
        self._config = config or LstmConfig()
        self._network: Any = None

    def fit(self, schedules: Sequence[Schedule], scores: Array) -> None:
        """Train on pairs of ``schedules``; what is not finite counts as the best or worst seen."""
        import torch

        config = self._config
        rng = np.random.default_rng((self._seed, 0))
        targets = _bounded(np.asarray(scores, dtype=np.float64))
        self._network = _network(config, np.random.default_rng((self._seed, 1)))
        tokens = _tokens(schedules, config.sinusoid)
        optimiser = torch.optim.Adam(self._network.parameters(), lr=config.rate)
        for _ in range(config.epochs):
            better, worse = _pairs(targets, config, rng)
            for start in range(0, len(better), config.batch):
                first, second = better[start : start + config.batch], worse[start : start + config.batch]
                met, place = np.unique(np.concatenate([first, second]), return_inverse=True)
                output = self._network([token[met] for token in tokens])[place]
                loss = (config.margin - (output[len(first) :] - output[: len(first)])).clamp(min=0.0).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

    def rank(self, schedules: Sequence[Schedule]) -> Array:
        """Scores of the network, lower for those it puts first."""
        if self._network is None:
            raise UsageError("LstmRanker.rank: found no records, expected a fit first.")
        import torch

        with torch.no_grad():
            out: Array = self._network(_tokens(schedules, self._config.sinusoid)).double().numpy()
        return out


def _pairs(targets: Array, config: LstmConfig, rng: np.random.Generator) -> tuple[npt.NDArray[np.intp], ...]:
    """Positions of the better and of the worse schedule of each pair that differs enough, shuffled."""
    n = len(targets)
    first = np.tile(np.arange(n), config.pairs)
    second = rng.integers(n, size=len(first))
    gap = targets[first] - targets[second]
    enough = np.abs(gap) > config.min_gap * targets.std()
    order = rng.permutation(np.flatnonzero(enough))
    first, second, gap = first[order], second[order], gap[order]
    return np.where(gap < 0.0, first, second), np.where(gap < 0.0, second, first)


def _tokens(schedules: Sequence[Schedule], sinusoid: int) -> list[torch.Tensor]:
    """Per schedule and step, padded to the longest: noise level, words, order, ops, and 1 where there is a step."""
    import torch

    longest = max(schedule.n_steps for schedule in schedules)
    parts: dict[str, Any] = {}
    for n_steps in sorted({schedule.n_steps for schedule in schedules}):
        places = [i for i, schedule in enumerate(schedules) if schedule.n_steps == n_steps]
        group = [schedules[i] for i in places]
        for name, values in _group_tokens(group, n_steps, sinusoid).items():
            whole = parts.setdefault(name, np.zeros((len(schedules), longest, values.shape[2]), dtype=np.float32))
            whole[places, :n_steps] = values
    return [torch.from_numpy(values) for values in parts.values()]


def _group_tokens(schedules: Sequence[Schedule], n_steps: int, sinusoid: int) -> dict[str, Array]:
    """`_tokens` of schedules of equally many steps."""
    sigma = np.array([schedule.sigma[:-1] for schedule in schedules])
    time = 1000.0 * np.where(sigma[:, :1] > 1.0, sigma / (1.0 + sigma), sigma)
    frequency = np.exp(-np.log(10000.0) * np.arange(sinusoid // 2) / (sinusoid // 2))
    angle = time[..., None] * frequency
    following = np.array([schedule.sigma[1:] for schedule in schedules])
    levels = sigma, following, np.log(sigma + 0.01), np.log((following + 0.01) / (sigma + 0.01))
    _, calls, words = solver_table(schedules)
    order = np.array([[solver.order - 1 for solver in schedule.solver] for schedule in schedules])
    ops = np.zeros((len(schedules), n_steps, 2 * len(OPS)))
    cells = cells_of([schedule.row(MODEL_ROW) for schedule in schedules], n_steps)
    ops[..., : len(OPS)] = np.eye(len(OPS))[cells]
    rows = [[row for name, row in schedule.ops if name != MODEL_ROW] for schedule in schedules]
    most = max(1, *(len(names) for names in rows))
    for i, texts in enumerate(rows):
        if texts:
            ops[i, :, len(OPS) :] = np.eye(len(OPS))[cells_of(texts, n_steps)].sum(axis=0) / most
    return {
        "time": np.concatenate([np.sin(angle), np.cos(angle)], axis=2),
        "words": np.concatenate([words, calls[..., None], *(level[..., None] for level in levels)], axis=2),
        "order": np.eye(MAX_ORDER)[order],
        "ops": ops,
        "is_step": np.ones((len(schedules), n_steps, 1)),
    }


def _network(config: LstmConfig, rng: np.random.Generator) -> Any:
    """The network, with weights drawn from ``rng`` (uniform within ``1 / sqrt(inputs)``, as torch would)."""
    import torch
    from torch import nn

    n_words = sum(len(words) for words in WORDS) + 5

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            wide = config.step_width
            self.time = nn.Sequential(nn.Linear(config.sinusoid, wide), nn.SiLU(), nn.Linear(wide, wide))
            self.words = nn.Sequential(nn.Linear(n_words, wide), nn.SiLU(), nn.Linear(wide, wide))
            self.order = nn.Linear(MAX_ORDER, config.order_width, bias=False)
            self.ops = nn.Linear(2 * len(OPS), config.op_width)
            inputs = 2 * wide + config.order_width + config.op_width
            self.steps = nn.LSTM(inputs, config.hidden, batch_first=True)
            widths = (config.hidden, *config.head)
            layers: list[nn.Module] = []
            for low, high in pairwise(widths):
                layers += [nn.Linear(low, high), nn.ReLU()]
            self.head = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

        def forward(self, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
            time, words, order, ops, is_step = tokens
            parts = (self.time(time), self.words(words), self.order(order), self.ops(ops))
            states, _ = self.steps(torch.cat(parts, dim=2))
            states = nn.functional.normalize(states, dim=2) * is_step
            out: torch.Tensor = self.head(states.sum(dim=1) / is_step.sum(dim=1))[:, 0]
            return out

    with torch.device("meta"):  # nothing is drawn from the global generator
        network = Network()
    network = network.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in network.parameters():
            reach = (config.hidden if parameter.ndim == 1 else parameter.shape[1]) ** -0.5
            parameter.copy_(torch.from_numpy(rng.uniform(-reach, reach, size=tuple(parameter.shape))))
    return network
