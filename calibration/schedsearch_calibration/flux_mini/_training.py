"""The loop both models are trained with: AdamW, cosine rate with warm-up, clipping, a running mean of the weights.

A checkpoint holds all of it, the random generator's state included, and is written all or nothing: a run that is killed
and started again ends, on a CPU, in the same weights bit for bit as one that was not. This module does not know what
is trained.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from schedsearch.errors import UsageError

Loss = Callable[[torch.Generator], torch.Tensor]
"""Draws a batch with the CPU generator it is given and returns the scalar loss."""

Report = Callable[[int, float], None]
"""Gets the number of steps done and the running mean of the loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a model is trained.

    Attributes:
        steps: optimizer steps in all.
        batch: pictures per step.
        lr: highest learning rate; reached after ``warmup`` steps, then a cosine down to 0.
        warmup: steps of linear rise.
        betas: of AdamW.
        weight_decay: of AdamW.
        clip: largest norm of the gradient; 0 leaves it alone.
        ema: decay of the running mean of the weights, which is the result; 0 = the last weights are.
        autocast: whether the forward pass runs in bfloat16.
        seed: of the weights' initial values and of all draws.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip: float = 0.0
    ema: float = 0.0
    autocast: bool = True
    seed: int = 0


def rate(step: int, settings: Settings) -> float:
    """Return the learning rate of step ``step`` (0 first)."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * done))


def train(
    model: nn.Module,
    loss_of: Loss,
    settings: Settings,
    *,
    checkpoint: Path,
    every: int = 250,
    stop_after: int | None = None,
    report: Report = lambda _step, _loss: None,
) -> int:
    """Train ``model`` in place, going on from ``checkpoint`` where there is one, and return the number of steps done.

    When all steps are done, ``model`` holds the result: the running mean of the weights, if one is kept.

    Args:
        model: everything that is trained, on its device.
        loss_of: the loss of one batch.
        settings: see `Settings`.
        checkpoint: file to go on from, written every ``every`` steps and at the end.
        every: steps between two checkpoints.
        stop_after: end early, with a checkpoint, once this many steps are done in all.
        report: called after each step.

    Raises:
        UsageError: the checkpoint is of a run with other settings, or the loss is not a number any more.
    """
    device = next(model.parameters()).device
    state = _State(model, settings)
    if checkpoint.is_file():
        state.load(checkpoint)
    last = settings.steps if stop_after is None else min(stop_after, settings.steps)
    model.train()
    while state.step < last:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.autocast), warnings.catch_warnings():
            # torch says once that RMS norms of bfloat16 values with float32 weights are not fused; that is meant.
            warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
            loss = loss_of(state.generator)
        state.update(loss)
        report(state.step, state.running)
        if state.step % every == 0 or state.step == last:
            state.save(checkpoint)
    if settings.ema and state.step == settings.steps:
        model.load_state_dict(state.mean)
    model.eval()
    return state.step


class _State:
    """All that changes from step to step."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.model = model
        self.settings = settings
        self.step = 0
        self.running = math.nan
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.mean = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def update(self, loss: torch.Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.step, self.settings)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.settings.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UsageError(f"training: the loss is {value} at step {self.step}. Lower the learning rate.")
        self.running = value if math.isnan(self.running) else 0.99 * self.running + 0.01 * value
        self.step += 1
        if self.settings.ema:
            self._average()

    @torch.no_grad()
    def _average(self) -> None:
        # A short run would otherwise keep its first, random weights: the decay rises from 2/11 to its value.
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.mean[name].lerp_(value, 1.0 - decay)
            else:
                self.mean[name].copy_(value)

    def save(self, path: Path) -> None:
        part = path.with_name(f".{path.name}.part")
        content = {
            "settings": _plain(self.settings),
            "step": self.step,
            "running": self.running,
            "model": self.model.state_dict(),
            "mean": self.mean if self.settings.ema else {},
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }
        torch.save(content, part)
        part.replace(path)

    def load(self, path: Path) -> None:
        device = next(self.model.parameters()).device
        try:
            content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # noqa: BLE001 -- a damaged archive fails in many ways
            raise UsageError(
                f"{path}: cannot be read as a checkpoint ({type(error).__name__}). Remove it to begin this stage again."
            ) from None
        changed = [
            f"{key} {content['settings'].get(key)} -> {value}"
            for key, value in _plain(self.settings).items()
            if content["settings"].get(key) != value
        ]
        if changed:
            raise UsageError(
                f"{path}: found a run with other settings ({', '.join(changed)}). "
                "Give another --out, or the settings it was begun with."
            )
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.mean.update(content["mean"])
        self.generator.set_state(content["generator"].cpu())
        self.step = content["step"]
        self.running = content["running"]


def _plain(settings: Settings) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()}
