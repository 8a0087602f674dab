"""The rows of the results table, and the overhead benchmark beside them."""

from __future__ import annotations

import pytest

from schedsearch.errors import UsageError
from schedsearch.evaluate import evaluate_held_out, find_metrics, paired_ratio
from schedsearch.evaluate._bench_overhead import bench_schedules, main, measure_overhead

PROMPTS = ("crying cat, purple background", "grinning face, white background", "rocket, red background")


@pytest.fixture(scope="module")
def rows(tiny, tiny_card, tiny_table, tiny_plan):
    progress: list[tuple[int, int]] = []
    drawn: list[tuple[str, int, int]] = []
    found = evaluate_held_out(
        tiny,
        tiny_card,
        {"identity": tiny_plan(), "half": tiny_plan(rows={"model": "CRCR"})},
        PROMPTS,
        mac_table=tiny_table,
        fewer_steps=(2, 2),
        seeds=(100, 101),
        batch=2,
        repeats=3,
        warmup=0,
        on_progress=lambda done, total: progress.append((done, total)),
        on_pictures=lambda name, start, pictures: drawn.append((name, start, len(pictures.images))),
    )
    names = ("full", "identity", "half", "2 steps")
    assert drawn == [(name, start, n) for name in names for start, n in ((0, 2), (2, 1))]  # of one seed
    assert progress == [(i, 11) for i in range(1, 12)]  # 4 ways x 2 seeds, 3 rounds
    return {row.name: row for row in found}


def test_rows_come_in_order_and_say_what_they_are(rows):
    assert [(row.name, row.kind, row.n_steps) for row in rows.values()] == [
        ("full", "full", 4),
        ("identity", "schedule", 4),
        ("half", "schedule", 4),
        ("2 steps", "fewer steps", 2),
    ]


def test_the_full_run_is_its_own_reference(rows, tiny_table):
    full = rows["full"]

    assert full.values("psnr") == (100.0,) * 6
    assert full.mean("latent_error") == 0.0
    assert (full.macs, full.macs_fraction) == (4 * tiny_table.total, 1.0)
    assert (full.speedup.median, full.speedup.n) == (1.0, 3)


def test_the_identity_schedule_gives_the_full_run(rows):
    assert rows["identity"].values("psnr") == rows["full"].values("psnr")


def test_work_is_counted_and_time_measured(rows):
    assert [row.denoiser_calls for row in rows.values()] == [4, 4, 2, 2]
    assert rows["half"].macs_fraction == rows["2 steps"].macs_fraction == 0.5
    # That half the work takes less time is not for a busy machine to say in three rounds.
    assert rows["half"].speedup == paired_ratio(rows["full"].latency, rows["half"].latency)
    assert len(rows["half"].latency.ms) == 3


def test_both_references_are_scored(rows):
    converged = rows["full"].values("converged_psnr")

    names = ("psnr", "ssim", "latent_error")
    assert [name for name, _ in rows["half"].samples] == [
        *names, "clip[flux-mini-clip]", *(f"converged_{name}" for name in names)  # a prompt is no reference run
    ]  # fmt: skip
    assert len(converged) == 6
    assert all(10.0 < value < 60.0 for value in converged)  # Euler in few steps is not the truth
    assert rows["full"].mean("converged_psnr") > rows["2 steps"].mean("converged_psnr")


def test_metrics_of_prompts_and_of_sets_are_scored_for_every_run(tiny, tiny_card, tiny_table, tiny_plan):
    found = evaluate_held_out(
        tiny, tiny_card, {"half": tiny_plan(rows={"model": "CRCR"})}, PROMPTS, mac_table=tiny_table,
        metrics=find_metrics("psnr,clip,kid", weights="flux-mini-clip"), seeds=(1, 2), batch=2, repeats=1, warmup=0,
    )  # fmt: skip
    full, half = found
    net = "[flux-mini-clip]"

    assert [name for name, _ in half.samples] == ["psnr", f"clip{net}", "converged_psnr"]
    assert len(half.values(f"clip{net}")) == 6
    assert [name for name, _ in half.sets] == [f"kid{net}", f"converged_kid{net}"]
    assert full.mean(f"kid{net}") == pytest.approx(0.0, abs=1e-12)
    assert full.mean(f"converged_kid{net}") != 0.0 != half.mean(f"kid{net}")


def test_fewer_steps_are_the_plain_pipelines_own(rows, tiny, tiny_workload):
    import torch

    from schedsearch.evaluate import METRICS, initial_latents, pipeline_kwargs

    noise = initial_latents(tiny, tiny_workload, seed=100, indices=[0])
    with torch.no_grad():
        full, two = (tiny(**pipeline_kwargs(tiny_workload, PROMPTS[0], latents=noise, steps=n))[0] for n in (4, 2))

    assert rows["2 steps"].values("psnr")[0] == pytest.approx(METRICS["psnr"](two, full)[0], abs=1e-3)


def test_an_unknown_metric_of_a_row_is_named(rows):
    with pytest.raises(UsageError, match="found 'lpips', expected one of psnr, ssim, latent_error"):
        rows["half"].mean("lpips")


def test_a_schedule_may_not_be_called_like_a_plain_run(mini, short_card, table, plan):
    with pytest.raises(UsageError, match="found the name 'full' twice"):
        evaluate_held_out(mini, short_card, {"full": plan()}, PROMPTS, mac_table=table)


def test_no_prompts_are_no_result(mini, short_card, table):
    with pytest.raises(UsageError, match="found 0 prompts and 1 seeds"):
        evaluate_held_out(mini, short_card, {}, (), mac_table=table)


def test_the_overhead_benchmark_compares_equal_work(mini, short):
    schedules = bench_schedules(mini, short)
    assert list(schedules) == ["plain", "2x model", "4x model", "8x model", "blocks"]

    one = {"blocks": schedules["blocks"]}
    (row,) = measure_overhead(mini, short, one, rounds=1, device="cpu")

    assert row.ratio == pytest.approx(row.scheduled_ms / (row.bare_ms + row.fixed_ms))
    # No bound on the ratio: one round on a shared machine says nothing about time.
    assert min(row.scheduled_ms, row.bare_ms, row.fixed_ms) > 0.0
    assert "forward" not in mini.transformer.__dict__
    assert not any("forward" in block.__dict__ for block in mini.transformer.transformer_blocks)


def test_the_overhead_benchmark_is_a_program(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])

    assert ended.value.code == 0
    assert "--rounds" in capsys.readouterr().out
