"""Every solver on the live pipeline: the same as an explicit loop, with as many denoiser calls as the schedule says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxImg2ImgPipeline

from schedsearch.errors import ApplyError, UnsupportedFeatureError
from schedsearch.runtime import apply, identity_schedule
from schedsearch.runtime._solver import advance, columns, fitted, n_evaluations, program
from schedsearch.schedule import (
    Schedule,
    Solver,
    read_schedule,
    solver_table,
    with_solver_table,
    write_frontier,
    write_schedule,
)

STEPS = 6
TABLE = Solver(family="table", order=3)
SOLVERS = {
    "euler": Solver(),
    "heun": Solver(family="heun", order=2),
    "adams 4": Solver(family="adams", order=4),
    "adams of noise, implicit": Solver(family="adams", order=2, prediction="noise", corrector="implicit"),
    "plms": Solver(family="plms", order=4),
    "dpm 3": Solver(family="dpm", order=3, prediction="data"),
    "dpm heun": Solver(family="dpm", order=2, prediction="noise", estimate="heun"),
    "unipc": Solver(family="unipc", order=3, prediction="data", corrector="pseudo"),
    "unipc bh1, implicit": Solver(family="unipc", order=2, corrector="implicit", estimate="bh1"),
    "table": TABLE,
}
COEFFICIENTS = ((), (), *(((1.0, -0.3 + 0.01 * i, 0.15, -0.02)) for i in range(STEPS - 2)))


def schedule_for(pipe: Any, *solvers: Solver, row: str = "C" * STEPS) -> Schedule:
    base = identity_schedule(pipe, STEPS, height=64, width=64)
    plan = replace(base, solver=solvers if len(solvers) > 1 else solvers * STEPS, ops=(("model", row),))
    rows = [row if solver == TABLE else () for row, solver in zip(COEFFICIENTS, plan.solver, strict=True)]
    return with_solver_table(plan, rows) if plan.unfitted else plan


class Loop:
    """The plain pipeline's own denoiser calls, taken from it, so that a loop can be written around them."""

    def __init__(self, pipe: Any, run: Any) -> None:
        self._transformer = pipe.transformer
        hook = pipe.transformer.register_forward_pre_hook(self._note, with_kwargs=True)
        run(pipe, steps=1, output_type="latent")
        hook.remove()

    def _note(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        self._call = kwargs
        self.start = kwargs["hidden_states"]

    @torch.no_grad()
    def velocity(self, sample: torch.Tensor, sigma: float) -> torch.Tensor:
        timestep = torch.tensor(sigma, dtype=torch.float32) * 1000  # as the pipeline rounds it
        call = self._call | {"hidden_states": sample, "timestep": timestep.expand(1) / 1000}
        return self._transformer(**call)[0]


@pytest.fixture
def loop(mini: Any, run: Any) -> Loop:
    return Loop(mini, run)


@pytest.fixture
def latents_of(mini: Any, run: Any) -> Any:
    def call(pipe: Any = mini, **kwargs: Any) -> torch.Tensor:
        return run(pipe, steps=STEPS, output_type="latent", **kwargs)

    return call


@pytest.fixture
def evaluations(mini: Any) -> Iterator[list[int]]:
    """Grows with every real call of the denoiser."""
    made: list[int] = []
    hook = mini.transformer.x_embedder.register_forward_hook(lambda *_: made.append(1))
    yield made
    hook.remove()


@pytest.fixture
def run(run: Any) -> Any:
    """The shared one, with another kind of output where it is asked for."""

    def call(pipe: Any, **kwargs: Any) -> torch.Tensor:
        kind = kwargs.pop("output_type", "pt")
        if kind == "pt":
            return run(pipe, **kwargs)
        decoded = pipe.vae.decode
        caught: list[torch.Tensor] = []

        def catch(latents: torch.Tensor, **rest: Any) -> Any:
            caught.append(latents)
            return decoded(latents, **rest)

        pipe.vae.decode = catch
        try:
            run(pipe, **kwargs)
        finally:
            del pipe.vae.decode
        return caught[0]

    return call


def as_decoded(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    unpacked = pipe._unpack_latents(latents, 64, 64, pipe.vae_scale_factor)
    return unpacked / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor


def mixed(solver: Solver) -> tuple[Solver, ...]:
    return (Solver(), Solver(family="adams", order=2), solver, solver, Solver(), solver)


@pytest.mark.parametrize("solvers", [*((s,) for s in SOLVERS.values()), *map(mixed, SOLVERS.values())], ids=str)
def test_a_replay_is_the_explicit_loop(
    mini: Any, loop: Loop, latents_of: Any, evaluations: list[int], solvers: tuple[Solver, ...]
) -> None:
    schedule = schedule_for(mini, *solvers)
    sample, history = loop.start, ()
    for call in program(schedule, weights=solver_table(schedule)):
        sample, history = advance(call, history, sample, loop.velocity(sample, call.sigma))
    expected = as_decoded(mini, sample)
    evaluations.clear()
    with apply(mini, schedule) as handle:
        found = latents_of()
        assert len(evaluations) == n_evaluations(schedule) == len(handle.calls)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("solver", "row", "n"),
    [("heun", "CCCCCC", 11), ("unipc bh1, implicit", "CCCCCC", 11), ("unipc", "CCCCCC", 6), ("heun", "CC1R2R", 4),
     ("adams 4", "CR1CRR", 2), ("unipc bh1, implicit", "CCRRRC", 5)],
)  # fmt: skip
def test_denoiser_calls_are_counted(
    mini: Any, run: Any, evaluations: list[int], *, solver: str, row: str, n: int
) -> None:
    schedule = schedule_for(mini, SOLVERS[solver], row=row)
    with apply(mini, schedule) as handle:
        run(mini)
        text = handle.describe()
    assert len(evaluations) == n_evaluations(schedule) == n
    assert f"{n} run the denoiser" in text


class TestHistoryAndCache:
    """The history holds computed outputs; a predicted one counts at its own step only (FORMAT.md M13)."""

    def test_reuse_under_adams_of_order_2_is_euler_with_the_old_output(self, mini: Any, latents_of: Any) -> None:
        for row in ("CCRCRR", "CRRRRR"):
            with apply(mini, schedule_for(mini, Solver(family="adams", order=1), row=row)):
                euler = latents_of()
            mixed = tuple(Solver(family="adams", order=2) if op == "R" else Solver() for op in row)
            with apply(mini, schedule_for(mini, *mixed, row=row)):
                torch.testing.assert_close(latents_of(), euler, rtol=1e-5, atol=1e-5)

    def test_a_forecast_under_adams_integrates_the_forecast(self, mini: Any, loop: Loop, latents_of: Any) -> None:
        """Order 1 of both, with uneven gaps: the trapezoid of two points on the forecast's own line."""
        schedule = schedule_for(mini, *(Solver(),) * 2, *(Solver(family="adams", order=2),) * 4, row="CC1111")
        sigma, sample, values = schedule.sigma, loop.start, []
        for i in range(2):
            values.append(loop.velocity(sample, sigma[i]))
            sample = sample + (sigma[i + 1] - sigma[i]) * values[i]
        slope = (values[1] - values[0]) / (sigma[1] - sigma[0])
        for i in range(2, STEPS):
            middle = (sigma[i] + sigma[i + 1]) / 2
            sample = sample + (sigma[i + 1] - sigma[i]) * (values[1] + (middle - sigma[1]) * slope)
        with apply(mini, schedule):
            torch.testing.assert_close(latents_of(), as_decoded(mini, sample), rtol=1e-4, atol=1e-4)

    def test_a_second_call_keeps_nothing(self, mini: Any, loop: Loop, latents_of: Any) -> None:
        """Heun with a reused step: both of its calls give what the first call of the step before computed."""
        schedule = schedule_for(mini, Solver(family="heun", order=2), row="CRCCCR")
        sample, kept = loop.start, None
        for i, (s0, s1) in enumerate(zip(schedule.sigma, schedule.sigma[1:], strict=False)):
            if "CRCCCR"[i] == "C":
                kept = loop.velocity(sample, s0)
            ahead = sample + (s1 - s0) * kept
            second = loop.velocity(ahead, s1) if "CRCCCR"[i] == "C" and s1 else kept
            sample = sample + (s1 - s0) * 0.5 * (kept + second)
        with apply(mini, schedule):
            torch.testing.assert_close(latents_of(), as_decoded(mini, sample), rtol=1e-4, atol=1e-4)

    def test_a_forecast_at_the_second_call_is_at_its_own_level(self, mini: Any) -> None:
        schedule = schedule_for(mini, Solver(family="heun", order=2), row="CC1CCC")
        with apply(mini, schedule) as handle:
            (site,) = handle.plan.sites
            sigma = schedule.sigma
            assert site.at(2, extra=False) == ("1", (pytest.approx(sigma[2] - sigma[1]),))
            assert site.at(2, extra=True) == ("1", (pytest.approx(sigma[3] - sigma[1]),))
            assert site.at(1, extra=True) == ("C", ())
            assert [step for step, extra in handle.plan.calls if extra] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("strength", [0.8, 0.5, 0.2])
@pytest.mark.parametrize("name", ["heun", "unipc", "table"])
def test_image_to_image_begins_in_the_middle(mini: Any, run: Any, name: str, strength: float) -> None:
    """As the rest of the schedule alone would run, whether the pipeline cuts before a step or inside one."""
    pipe = FluxImg2ImgPipeline.from_pipe(mini)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    call = {"image": image, "strength": strength, "steps": STEPS}
    schedule = schedule_for(pipe, SOLVERS[name])
    seen: list[tuple[int, Any, torch.Tensor, torch.Tensor]] = []
    with apply(pipe, schedule) as handle:
        plain = run(pipe, **call)
        handle.on_call = lambda index, call, sample, output, _history: seen.append(
            (index, call, sample.clone(), output.clone())
        )
        assert torch.equal(run(pipe, **call), plain)
        latents = run(pipe, **call, output_type="latent")
        n_calls = len(handle.calls)
    cut = int(n_calls - n_calls * strength)  # as the pipeline counts
    begin = seen[0][1].step
    assert begin == program(schedule)[cut].step + program(schedule)[cut].extra > 0
    calls = program(schedule, begin=begin)
    assert [entry[0] for entry in seen[: len(calls)]] == list(range(len(calls)))
    assert all(call.family != "table" for call in calls)
    sample, history = seen[0][2], ()
    for call, entry in zip(calls, seen, strict=False):
        assert torch.equal(entry[2], sample)
        sample, history = advance(call, history, sample, entry[3])
    assert torch.equal(latents, as_decoded(pipe, sample))


class TestTables:
    def test_they_are_fitted_while_running(self, mini: Any, latents_of: Any) -> None:
        """What `on_call` returns is carried out, and its coefficients give the same run once they are in the tables."""
        fixed = schedule_for(mini, TABLE)
        plan = replace(fixed, tables=None)
        rows: list[tuple[float, ...]] = [()] * STEPS

        def fit(index: int, call: Any, sample: Any, output: Any, history: Any) -> Any:
            if not call.unfitted:
                return None
            assert [column.shape for column in columns(call, history, sample, output)] == [sample.shape] * 4
            rows[index] = COEFFICIENTS[index]
            return fitted(call, rows[index])

        with apply(mini, plan, unfitted=True) as handle:
            handle.on_call = fit
            found = latents_of()
            handle.on_call = None
            with pytest.raises(ApplyError, match=r"steps\.solver\[2\]: found a table step that is not fitted yet"):
                latents_of()
        assert rows == list(COEFFICIENTS)
        with apply(mini, with_solver_table(plan, rows)) as handle:
            assert torch.equal(latents_of(), found)
            assert "steps 2-5: table of order 3" in handle.describe()
            assert "step 1: adams of order 2, for want of history" in handle.describe()

    def test_an_unfitted_schedule_is_refused_by_name(self, mini: Any) -> None:
        plan = replace(schedule_for(mini, Solver(), Solver(), *(TABLE,) * 4), tables=None)
        with pytest.raises(UnsupportedFeatureError, match=r"steps\.solver\[2\]: found a table step that is not fitted"):
            apply(mini, plan)

    def test_a_file_needs_its_side_file(self, mini: Any, latents_of: Any, tmp_path: Path) -> None:
        schedule = schedule_for(mini, TABLE)
        write_schedule(schedule, tmp_path / "a.json")
        with apply(mini, schedule):
            expected = latents_of()
        with apply(mini, tmp_path / "a.json"):
            assert torch.equal(latents_of(), expected)
        (tmp_path / "a.safetensors").unlink()
        with pytest.raises(ApplyError, match=r"tables: found no data, expected the file with the hash [0-9a-f]{12}"):
            apply(mini, tmp_path / "a.json")
        with apply(mini, read_schedule(tmp_path / "a.json"), unfitted=True) as handle:
            assert handle.calls[3].unfitted

    def test_a_frontier_brings_its_side_files(self, mini: Any, latents_of: Any, tmp_path: Path) -> None:
        from schedsearch.schedule import Measurement

        speed = Measurement(metric="speedup", unit="x", better="max", value=4.0, low=4.0, high=4.0, n=1)
        schedule = replace(schedule_for(mini, TABLE), measured=(speed,))
        write_frontier(tmp_path, [schedule], quality="psnr")
        with apply(mini, schedule):
            expected = latents_of()
        with apply(mini, tmp_path, budget="3x"):
            assert torch.equal(latents_of(), expected)


def test_describe_names_every_solver(mini: Any) -> None:
    solvers = (Solver(), SOLVERS["heun"], SOLVERS["heun"], SOLVERS["unipc"], SOLVERS["dpm heun"], Solver())
    with apply(mini, schedule_for(mini, *solvers, row="CCCRCC")) as handle:
        lines = handle.describe().splitlines()
    assert lines[2:] == [
        "6 steps from sigma 1 to 0 in 8 calls, 7 run the denoiser",
        "  step 0: euler",
        "  steps 1-2: heun",
        "  step 3: unipc of order 3, in data, corrector pseudo",
        "  step 4: dpm of order 2, in noise, derivatives by heun",
        "  step 5: euler",
        "  orders above 1 look back on computed outputs; a predicted one counts at its own step only",
        "  CCKRCC  the whole denoiser",
        "  C compute, K compute and keep, R reuse, 1-3 forecast, S skip, . not reached",
        "3 distinct step patterns; caches hold 0.00 MiB now",
    ]


def test_the_history_owns_its_values(mini: Any, latents_of: Any) -> None:
    """A compiled denoiser may write its next output where the last one was."""
    schedule = schedule_for(mini, SOLVERS["adams 4"])
    with apply(mini, schedule):
        expected = latents_of()
        original, place = mini.transformer.forward, torch.empty(1, 64, 32)

        def forward(*args: Any, **kwargs: Any) -> Any:
            return (place.copy_(original(*args, **kwargs)[0]),)

        mini.transformer.forward = forward
        try:
            assert torch.equal(latents_of(), expected)
        finally:
            del mini.transformer.forward
