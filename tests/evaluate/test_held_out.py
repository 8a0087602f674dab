"""The rows of the results table, and the overhead benchmark beside them."""

from __future__ import annotations

import pytest

from schedsearch.errors import UsageError
from schedsearch.evaluate import evaluate_held_out
from schedsearch.evaluate._bench_overhead import bench_schedules, main, measure_overhead

PROMPTS = ("crying cat, purple background", "grinning face, white background", "rocket, red background")


@pytest.fixture(scope="module")
def rows(mini, short_card, table, plan):
    progress: list[tuple[int, int]] = []
    found = evaluate_held_out(
        mini,
        short_card,
        {"identity": plan(), "half": plan(rows={"model": "CRCR"})},
        PROMPTS,
        mac_table=table,
        fewer_steps=(2, 2),
        seeds=(100, 101),
        batch=2,
        repeats=3,
        warmup=1,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert progress == [(i, 12) for i in range(1, 13)]  # 4 ways x 2 seeds, 4 rounds
    return {row.name: row for row in found}


def test_rows_come_in_order_and_say_what_they_are(rows):
    assert [(row.name, row.kind, row.n_steps) for row in rows.values()] == [
        ("full", "full", 4),
        ("identity", "schedule", 4),
        ("half", "schedule", 4),
        ("2 steps", "fewer steps", 2),
    ]


def test_the_full_run_is_its_own_reference(rows, table):
    full = rows["full"]

    assert full.values("psnr") == (100.0,) * 6
    assert full.mean("latent_error") == 0.0
    assert (full.macs, full.macs_fraction) == (4 * table.total, 1.0)
    assert (full.speedup.median, full.speedup.n) == (1.0, 3)


def test_the_identity_schedule_gives_the_full_run(rows):
    assert rows["identity"].values("psnr") == rows["full"].values("psnr")


def test_work_is_counted_and_time_measured(rows):
    assert [row.denoiser_calls for row in rows.values()] == [4, 4, 2, 2]
    assert rows["half"].macs_fraction == rows["2 steps"].macs_fraction == 0.5
    assert rows["half"].speedup.median > 1.0
    assert len(rows["half"].latency.ms) == 3


def test_fewer_steps_are_the_plain_pipelines_own(rows, mini, short):
    import torch

    from schedsearch.evaluate import METRICS, initial_latents, pipeline_kwargs

    noise = initial_latents(mini, short, seed=100, indices=[0])
    with torch.no_grad():
        full, two = (mini(**pipeline_kwargs(short, PROMPTS[0], latents=noise, steps=n))[0] for n in (4, 2))

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
    # Far from the bound on purpose: one round on a shared machine says only that both sides do the same work.
    assert 0.4 < row.ratio < 2.5
    assert "forward" not in mini.transformer.__dict__
    assert not any("forward" in block.__dict__ for block in mini.transformer.transformer_blocks)


def test_the_overhead_benchmark_is_a_program(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])

    assert ended.value.code == 0
    assert "--rounds" in capsys.readouterr().out
