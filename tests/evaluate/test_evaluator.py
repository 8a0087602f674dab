"""The evaluator on a small FLUX: what it records, that it repeats, and that nothing a candidate does hurts."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch

from schedsearch.errors import UsageError
from schedsearch.evaluate import CostModel, PipelineEvaluator, pipeline_kwargs, schedule_macs
from schedsearch.evaluate._cost import FEATURES, ModuleTimes
from schedsearch.evaluate._reference import PairedRuns, Reference
from schedsearch.protocols import Evaluator
from schedsearch.runtime import block_lists_of
from schedsearch.schedule import Solver, solver_table
from schedsearch.study import Candidate, Objective

PROMPTS = (
    "red apple, blue background",
    "rocket, black background",
    "pizza, yellow background",
    "dog face, green background",
    "red heart, white background",
)


@pytest.fixture(scope="module")
def mini(tiny):
    """Random weights do for records; what pictures look like is tested on the bundled model elsewhere."""
    return tiny


@pytest.fixture(scope="module")
def short(tiny_workload):
    return dataclasses.replace(tiny_workload, steps=4)


@pytest.fixture(scope="module")
def short_card(tiny_card):
    return tiny_card


@pytest.fixture(scope="module")
def lists(mini):
    return block_lists_of(mini)


@pytest.fixture(scope="module")
def table(tiny_table):
    return tiny_table


@pytest.fixture(scope="module")
def plan(tiny_plan):
    return tiny_plan


@pytest.fixture(scope="module")
def cost_model(lists):
    """One millisecond per block and nothing else."""
    modules = [(b.name, 1.0) for each in lists for b in each]
    modules += [(f"{b.name}.{part}", 0.25) for each in lists for b in each for part in b.components]
    times = ModuleTimes(block_lists=lists, branches=1, rest_ms=0.0, modules=tuple(modules))
    coefficients = tuple(1.0 if name in ("compute", "saved") else 0.0 for name in FEATURES)
    return CostModel(device="a machine", full_ms=16.0, times=times, coefficients=coefficients, residual=0.0)


@pytest.fixture(scope="module")
def make(mini, short_card, cost_model, table):
    def evaluator(prompts=PROMPTS, **settings):
        return PipelineEvaluator(mini, short_card, prompts, cost_model=cost_model, mac_table=table, **settings)

    return evaluator


@pytest.fixture(scope="module")
def evaluator(make):
    return make(batch=4)


def candidate(schedule):
    return Candidate(schedule=schedule, searcher="by hand", ask=0)


def samples_of(evaluation):
    return dict(evaluation.samples)


def test_it_is_an_evaluator(evaluator):
    assert isinstance(evaluator, Evaluator)
    assert evaluator.objectives == (
        Objective(name="latency_ms", unit="ms", better="min"),
        Objective(name="psnr", unit="dB", better="max"),
    )
    assert evaluator.n_prompts == 5


def test_the_identity_schedule_is_the_full_run(evaluator, plan, table, lists):
    evaluation = evaluator.evaluate(candidate(plan()), fidelity=5)

    assert evaluation.status == "ok"
    assert samples_of(evaluation)["latent_error"] == (0.0,) * 5
    assert samples_of(evaluation)["psnr"] == (100.0,) * 5
    assert evaluation.values == (16.0, 100.0)
    assert dict(evaluation.metrics)["macs"] == 4 * table.total
    assert evaluation.denoiser_evals == 5 * 4


def test_a_record_says_what_was_measured_and_what_it_took(evaluator, plan, table, lists):
    schedule = plan(rows={"model": "CRCR"})
    evaluation = evaluator.evaluate(candidate(schedule), fidelity=3)
    metrics, samples = dict(evaluation.metrics), samples_of(evaluation)

    assert (evaluation.status, evaluation.reason, evaluation.fidelity) == ("ok", "", 3)
    assert list(samples) == ["psnr", "latent_error", "converged_psnr", "converged_latent_error"]
    assert all(len(values) == 3 for values in samples.values())
    assert evaluation.values == (8.0, pytest.approx(sum(samples["psnr"]) / 3))
    assert metrics["predicted_ms"] == 8.0
    assert metrics["macs"] == schedule_macs(schedule, table, lists)
    assert metrics["denoiser_calls"] == 2
    assert metrics["latent_error"] == pytest.approx(sum(samples["latent_error"]) / 3)
    assert evaluation.denoiser_evals == 3 * 2
    assert evaluation.seconds > 0
    assert "thread" in evaluation.device
    assert 5 < evaluation.values[1] < 100


def test_scores_are_those_of_plain_calls_by_hand(mini, short, evaluator, plan):
    from schedsearch.evaluate import METRICS, initial_latents
    from schedsearch.runtime import apply

    schedule = plan(rows={"model": "CCRC"})
    noise = initial_latents(mini, short, seed=0, indices=[1])
    kwargs = pipeline_kwargs(short, PROMPTS[1], latents=noise)
    with torch.no_grad():
        full = mini(**kwargs)[0]
        with apply(mini, schedule):
            fast = mini(**kwargs)[0]

    found = samples_of(evaluator.evaluate(candidate(schedule), fidelity=2))["psnr"][1]

    assert found == pytest.approx(METRICS["psnr"](fast, full)[0], abs=1e-3)


def test_scores_repeat_to_the_bit(make, plan):
    schedule = plan(rows={"model": "CR2C", "transformer_blocks.1": "CCRR"})
    first, second = make(), make()

    one = first.evaluate(candidate(schedule), fidelity=5)
    other = second.evaluate(candidate(schedule), fidelity=5)

    assert one.samples == other.samples == first.evaluate(candidate(schedule), fidelity=5).samples
    assert one.values == other.values


def test_scores_do_not_depend_on_the_batch(make, plan):
    schedule = plan(rows={"model": "CRCR"})
    found = [samples_of(make(batch=b).evaluate(candidate(schedule), fidelity=5)) for b in (1, 2, 8)]

    for other in found[1:]:
        assert other["psnr"] == pytest.approx(found[0]["psnr"], abs=1e-3)
        assert other["latent_error"] == pytest.approx(found[0]["latent_error"], rel=1e-4)


def test_a_low_fidelity_is_the_beginning_of_a_high_one(make, plan):
    evaluator = make(batch=2)
    schedule = plan(rows={"model": "CRCR"})

    few = samples_of(evaluator.evaluate(candidate(schedule), fidelity=2))["psnr"]
    many = samples_of(evaluator.evaluate(candidate(schedule), fidelity=5))["psnr"]

    assert many[:2] == few


def test_fidelity_ends_at_the_number_of_prompts(evaluator, plan):
    assert evaluator.evaluate(candidate(plan()), fidelity=99).fidelity == 5


def test_another_seed_is_another_noise(make, plan):
    schedule = plan(rows={"model": "CRCR"})
    one, other = (make(seed=seed).evaluate(candidate(schedule), fidelity=2) for seed in (0, 1))

    assert one.samples != other.samples


def test_a_schedule_with_other_steps_is_run_with_its_own(make, plan):
    evaluation = make(batch=4).evaluate(candidate(plan(steps=2)), fidelity=2)

    assert evaluation.status == "ok"
    assert evaluation.denoiser_evals == 2 * 2


def test_macs_can_be_the_cost(make, plan, table):
    evaluator = make(cost="macs", metric="latent_error")
    evaluation = evaluator.evaluate(candidate(plan(rows={"model": "CRRR"})), fidelity=1)

    assert [o.name for o in evaluator.objectives] == ["macs", "latent_error"]
    assert evaluator.objectives[1].better == "min"
    assert evaluation.values[0] == table.total


def test_a_schedule_for_another_model_is_a_failed_record(evaluator, plan, mini):
    schedule = plan()
    other = dataclasses.replace(schedule, model=dataclasses.replace(schedule.model, config="0" * 64))

    evaluation = evaluator.evaluate(candidate(other), fidelity=2)

    assert evaluation.status == "failed"
    assert evaluation.reason.startswith("ModelMismatchError: model.config: found a FluxTransformer2DModel")
    assert (evaluation.values, evaluation.samples, evaluation.denoiser_evals) == ((), (), 0)


@pytest.mark.parametrize(
    ("stray", "status", "reason", "evals"),
    [
        (
            0.5,
            "pruned",
            r"after call 1 of 4, at sigma 0.\d+, the latents are inf \(rel.* the default run, more than 0.5",
            1,
        ),
        (math.inf, "failed", r"FloatingPointError: a picture of prompts 0 to 1 holds NaN or infinity", 4),
    ],
)
def test_numbers_that_are_none_end_a_run(make, plan, stray, status, reason, evals):  # noqa: PLR0917 -- pytest's way
    evaluator = make(stray=stray)
    evaluator.prepare(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator._pipe.transformer.proj_out, "forward", lambda x: x[..., :4] * math.nan)
        evaluation = evaluator.evaluate(candidate(plan()), fidelity=2)

    assert evaluation.status == status
    assert re.fullmatch(reason, evaluation.reason)
    assert (evaluation.values, evaluation.samples, evaluation.denoiser_evals) == ((), (), 2 * evals)


def test_a_hopeless_run_is_a_pruned_record(make, plan):
    evaluator = make(batch=2, stray=1e-4)

    evaluation = evaluator.evaluate(candidate(plan(rows={"model": "CRRR"})), fidelity=5)

    assert evaluation.status == "pruned"
    assert re.match(
        r"after call 2 of 4, at sigma 0\.\d+, the latents are .* away from the default run", evaluation.reason
    )
    assert (evaluation.values, evaluation.metrics, evaluation.denoiser_evals) == ((), (), 2)
    assert evaluator.evaluate(candidate(plan()), fidelity=5).status == "ok"


def test_candidates_that_begin_alike_share_calls_and_lose_nothing(make, plan):
    shared, alone = make(), make(tree_bytes=0)
    first, second = plan(rows={"model": "CCCR"}), plan(rows={"model": "CCRC"})
    shared.evaluate(candidate(first), fidelity=3)

    one, other = (e.evaluate(candidate(second), fidelity=3) for e in (shared, alone))

    assert one.samples == other.samples
    assert one.metrics == other.metrics
    assert (one.denoiser_evals, other.denoiser_evals) == (3 * 1, 3 * 3)


def test_quality_can_be_against_the_converged_run(make, plan):
    evaluators = {name: make(reference=name, metric="latent_error") for name in ("default", "converged")}
    found = {name: e.evaluate(candidate(plan()), fidelity=5) for name, e in evaluators.items()}

    assert [e.objectives[1].name for e in evaluators.values()] == ["latent_error", "converged_latent_error"]
    assert found["default"].samples == found["converged"].samples
    assert found["default"].values[1] == 0.0
    assert found["converged"].values[1] == dict(found["default"].metrics)["converged_latent_error"] > 0.0


def test_ssim_is_scored_where_it_is_the_objective(make, plan):
    evaluation = make(metric="ssim").evaluate(candidate(plan()), fidelity=1)

    assert list(samples_of(evaluation)) == [
        f"{against}{name}" for against in ("", "converged_") for name in ("psnr", "latent_error", "ssim")
    ]
    assert evaluation.values[1] == pytest.approx(1.0)


def test_a_schedule_is_fitted_as_it_is_measured(make, plan):
    evaluator = make(batch=2)
    schedule = plan(solver=tuple(Solver(family="table", order=min(i + 1, 2)) for i in range(4)))

    measured = evaluator.evaluate(candidate(schedule), fidelity=3)
    ready = evaluator.fit(schedule, 3)

    assert measured.denoiser_evals == 3 * 4
    assert evaluator.spent == 0  # the same prompts: all is known
    assert not ready.unfitted
    assert [len([c for c in row if c]) for row in solver_table(ready)] == [2, 3, 3, 3]
    assert make(batch=2).evaluate(candidate(ready), fidelity=3).samples == measured.samples
    assert evaluator.fit(ready, 3) is ready
    assert evaluator.fit(plan(), 3) == plan()


def test_more_prompts_fit_other_scalars(make, plan):
    evaluator = make(batch=2)
    schedule = plan(solver=(Solver(family="table", order=1),) * 4)

    assert evaluator.fit(schedule, 1) != evaluator.fit(schedule, 5)
    assert evaluator.fit(schedule, 99) == evaluator.fit(schedule, 5)
    with pytest.raises(UsageError, match="fidelity: found 0, expected at least 1 prompt"):
        evaluator.fit(schedule, 0)


def test_an_error_in_the_run_is_a_failed_record_and_the_pipeline_is_put_back(evaluator, plan, mini, monkeypatch):
    before = evaluator.evaluate(candidate(plan()), fidelity=2)
    with monkeypatch.context() as patch:

        def fail(_):
            raise torch.OutOfMemoryError("no room")

        patch.setattr(mini.transformer.proj_out, "forward", fail)
        evaluation = evaluator.evaluate(candidate(plan(rows={"model": "CRCR"})), fidelity=2)

    assert evaluation.reason == "OutOfMemoryError: no room"
    assert evaluator.evaluate(candidate(plan()), fidelity=2).samples == before.samples


def test_an_interrupt_passes_and_the_pipeline_is_put_back(make, plan, mini, monkeypatch):
    evaluator = make()
    evaluator.prepare(2)
    with monkeypatch.context() as patch:

        def interrupt(_):
            raise KeyboardInterrupt

        patch.setattr(mini.transformer.proj_out, "forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluator.evaluate(candidate(plan()), fidelity=2)

    assert evaluator.evaluate(candidate(plan()), fidelity=2).values[1] == 100.0


def test_preparing_says_what_it_spent_and_spends_once(make):
    evaluator = make(batch=2)

    assert evaluator.prepare(3) == 4 * (4 + 8)  # whole batches: four prompts, four steps, and twice as many converged
    assert evaluator.prepare(3) == evaluator.spent == 0
    assert evaluator.prepare(5) == 1 * (4 + 8)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"prompts": ()}, "found 0 prompts and batch=8"),
        ({"batch": 0}, "found 5 prompts and batch=0"),
        ({"cost": "seconds"}, "found cost 'seconds', expected latency_ms or macs"),
        ({"metric": "sharpness"}, "metric: found 'sharpness', expected one of psnr"),
        ({"reference": "best"}, "reference: found 'best', expected one of default, converged"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, settings, text):
    with pytest.raises(UsageError, match=text):
        make(**settings)


def test_a_fidelity_of_nothing_is_refused(evaluator, plan):
    with pytest.raises(UsageError, match="fidelity: found 0, expected at least 1 prompt"):
        evaluator.evaluate(candidate(plan()), fidelity=0)


def test_images_beyond_the_memory_are_decoded_again_to_the_same_pixels(mini, short):
    runs = PairedRuns(mini, short, PROMPTS[:3], seed=0, batch=3)
    roomy, narrow = Reference(runs), Reference(runs, image_bytes=3 * 8 * 8 * 4)
    for reference in (roomy, narrow):
        reference.prepare(3)

    assert len(narrow._images) == 1
    assert torch.equal(roomy.pictures(0, 3).images, narrow.pictures(0, 3).images)
    assert torch.equal(roomy.pictures(1, 2).latents, narrow.pictures(1, 2).latents)


class TestPolishing:
    """A candidate that asks for it is measured with its numbers fitted together."""

    @pytest.fixture
    def few(self, plan):
        grid = plan()
        solver = tuple(Solver(family="table", order=order) for order in (1, 2))
        return dataclasses.replace(grid, sigma=(*grid.sigma[:4:2], grid.sigma[-1]), solver=solver, ops=())

    def measured(self, evaluator, schedule, polish):
        asked = dataclasses.replace(candidate(schedule), polish=polish)
        return asked, evaluator.evaluate(asked, fidelity=2)

    def test_it_ends_nearer_and_the_record_keeps_where_it_began(self, make, few):
        errors = {}
        for polish in ("", "scalars", "levels"):
            asked, evaluation = self.measured(make(batch=4), few, polish)
            assert (evaluation.status, evaluation.candidate) == ("ok", asked)
            errors[polish] = dict(evaluation.metrics)["latent_error"]
            assert evaluation.values[0] == 8.0  # the cost is that of its calls
        assert errors["levels"] < errors["scalars"] < errors[""]

    def test_the_schedule_it_was_measured_with_can_be_had(self, make, few):
        evaluator = make(batch=4)
        for polish in ("", "levels"):
            asked, evaluation = self.measured(evaluator, few, polish)
            ready = evaluator.ready(asked, fidelity=2)
            assert not ready.unfitted
            assert (ready.sigma == few.sigma) == (polish == "")
            assert make(batch=4).evaluate(candidate(ready), fidelity=2).samples == evaluation.samples

    def test_what_it_takes_is_counted(self, make, few):
        _, plain = self.measured(make(batch=4), few, "")
        _, polished = self.measured(make(batch=4), few, "levels")
        assert plain.denoiser_evals == 2 * 2
        assert polished.denoiser_evals > 2 * (2 + 2)  # derivatives by the first step's scalars, and by the level

    def test_what_has_no_fitted_steps_is_measured_as_it_is(self, make, plan):
        for polish in ("", "levels"):
            _, evaluation = self.measured(make(batch=4), plan(rows={"model": "CRCR"}), polish)
            assert evaluation.denoiser_evals == 2 * 2

    def test_what_strays_is_pruned(self, make, few):
        _, evaluation = self.measured(make(batch=4, stray=1e-6), few, "levels")
        assert (evaluation.status, evaluation.values) == ("pruned", ())
