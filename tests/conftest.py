"""Settings for every test: few threads, no network, and reproducible property tests."""

from __future__ import annotations

import os
import shutil
import sys
from typing import NamedTuple

# Before torch is first imported: two threads are what the smallest machine has, and numbers should not depend on more.
# Where several workers share the machine (pytest -n), each has one. A worker inherits what the process that started it
# has set here, so there `setdefault` would leave it two.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
else:
    os.environ.setdefault("OMP_NUM_THREADS", "2")
# Idle threads sleep. By default they spin, which makes small models many times slower as soon as anything else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest
from hypothesis import HealthCheck, settings

# CI machines differ in speed, so no deadline; the same examples on every run, so a red build is red again at home.
settings.register_profile(
    "schedsearch",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
# Looks for new counterexamples: HYPOTHESIS_PROFILE=search pytest ...
settings.register_profile("search", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "schedsearch"))


class Outcome(NamedTuple):
    """What a call of the command line left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """Runs the command line in this process."""
    from schedsearch import cli

    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def run(*words: str) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["schedsearch", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture(scope="session")
def schedule():
    """A schedule of five steps with rows at all three levels, for no real model."""
    from schedsearch.schedule import Measurement, ModelRef, Provenance, Schedule, Solver

    ops = [("model", "CCRRC")]
    ops += [(f"transformer_blocks.{i}", "C1C2R" if i == 2 else "CRCCR") for i in range(4)]
    ops += [(f"single_transformer_blocks.{i}.attn", "CSCCR") for i in range(8)]
    return Schedule(
        sigma=(1.0, 0.8, 0.6, 0.4, 0.2, 0.0),
        solver=(Solver(),) * 5,
        model=ModelRef(pipeline="FluxPipeline", config="a" * 64, blocks="b" * 64, height=64, width=64),
        ops=tuple(ops),
        measured=(
            Measurement(
                metric="speedup", unit="x", better="max", value=4.12, low=3.9, high=4.3, n=10,
                prompts="held-out", device="2 cores", dtype="float32",
            ),
        ),
        provenance=Provenance(study="s", searcher="anneal", seed=3, ask=17),
    )  # fmt: skip


@pytest.fixture(scope="session")
def full_schedule(schedule):
    """The same with the fields that few schedules use."""
    import dataclasses

    from schedsearch.schedule import Measurement, PrecisionRule, Provenance, Solver

    psnr = Measurement(metric="psnr", unit="dB", better="max", value=25.0, low=25.0, high=25.0, n=64)
    return dataclasses.replace(
        schedule,
        solver=(Solver(),) * 2 + (Solver(family="adams", order=2),) * 3,
        guidance=(3.5, 3.5, None, None, 1.0),
        precision=(PrecisionRule(pattern="transformer_blocks.*", weight="int8", activation="bf16"),),
        pruned=("transformer_blocks.9",),
        model=dataclasses.replace(schedule.model, adapters=("emoji",)),
        measured=(psnr,),
        provenance=Provenance(note="by hand"),
    )


@pytest.fixture
def schedule_file(schedule, tmp_path):
    """The schedule as a file."""
    from schedsearch.schedule import write_schedule

    path = tmp_path / "plan.json"
    write_schedule(schedule, path)
    return path


@pytest.fixture
def frontier_folder(schedule, tmp_path):
    """A frontier of two: the schedule, and the plain run it is compared with."""
    import dataclasses

    from schedsearch.schedule import write_frontier

    measured = dataclasses.replace(schedule.measured[0], value=1.0, low=1.0, high=1.0)
    plain = dataclasses.replace(schedule, ops=(), measured=(measured,))
    write_frontier(tmp_path / "frontier", [schedule, plain], quality="psnr")
    return tmp_path / "frontier"


@pytest.fixture(scope="session")
def make_row():
    """Makes a measured row from the speedups and the PSNR of every prompt; its error falls where PSNR rises."""
    from schedsearch.study import Row, Score, mean_of, median_of

    def make(family, setting, ratios, psnr, **fields):
        scores = tuple(
            Score(metric=name, mean=mean_of(values), values=values)
            for name, values in (("psnr", tuple(psnr)), ("latent_error", tuple(1.0 / value for value in psnr)))
        )
        known = {"schedule": "", "latency_ms": 10.0, "work": 0.5, "note": ""}
        return Row(
            family=family, setting=setting, speedup=median_of(ratios), ratios=tuple(ratios), scores=scores,
            **{**known, **fields},
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def comparison(make_row):
    """A comparison of ours with two others, in which ours lead at 2x, lose at 4x and are too slow for 6x."""
    from schedsearch.study import Absent, Comparison, Conditions, Family, Measure, Version, verdicts
    from schedsearch.study._comparison import FORMAT, VERSION

    rows = (
        make_row("ours", "ours-2x", (2.1, 2.0, 2.2), (50.0, 52.0, 54.0), schedule="sha256:2"),
        make_row("ours", "ours-4x", (4.1, 4.0, 4.2), (30.0, 31.0, 32.0), schedule="sha256:4"),
        make_row("plain", "eager", (1.0, 1.0, 1.0), (100.0, 100.0, 100.0), work=1.0),
        make_row("euler", "14 steps", (2.0, 2.0, 2.1), (40.0, 42.0, 44.5), schedule="sha256:e"),
        make_row("diffusers-fbc", "threshold 0.5", (4.5, 4.4, 4.6), (35.0, 36.0, 37.5)),
        make_row("diffusers-fbc", "threshold 1", (6.5, 6.4, 6.6), (20.0, 21.0, 22.0), note="by hand"),
    )
    metrics = (
        Measure(name="psnr", unit="dB", better="max"),
        Measure(name="latent_error", unit="1", better="min"),
    )
    budgets = (2.0, 4.0, 6.0, 8.0)
    return Comparison(
        format=FORMAT, version=VERSION, created_by="schedsearch test", created="2026-01-01T00:00:00+00:00",
        command="schedsearch compare", seconds=90.0,
        conditions=Conditions(
            model="toy", weights="w" * 64, width=64, height=64, steps=28, batch=1, dtype="float32", device="2 cores",
            prompts="toy-held-out", prompts_sha256="ab" * 32, n_prompts=3, seed=1,
            versions=(Version(name="diffusers", version="0.42.1"),),
        ),
        metrics=metrics, budgets=budgets,
        families=(
            Family(name="ours", title="ours", source="ours", library="", swept=0),
            Family(name="plain", title="full run", source="plain", library="", swept=0),
            Family(name="euler", title="fewer steps, Euler", source="schedules", library="", swept=9),
            Family(
                name="diffusers-fbc", title="diffusers FirstBlockCache", source="peer", library="diffusers", swept=5
            ),
            Family(name="cachedit-foca", title="cache-dit DBCache + FoCa", source="peer", library="cache-dit", swept=0),
        ),
        rows=rows,
        absent=(
            Absent(family="cachedit-foca", setting="", cause="failed", reason="ValueError: not there yet"),
            Absent(family="diffusers-fbc", setting="threshold 9", cause="failed", reason="RuntimeError: no"),
            Absent(family="diffusers-fbc", setting="threshold 8", cause="failed", reason="RuntimeError: no"),
        ),
        verdicts=verdicts(rows, metrics, budgets),
    )  # fmt: skip


@pytest.fixture(scope="session")
def six_steps(tmp_path_factory):
    """A folder with the bundled model whose card asks for six steps."""
    from schedsearch_calibration import flux_mini_path

    folder = tmp_path_factory.mktemp("model") / "mini"
    shutil.copytree(flux_mini_path(), folder)
    card = folder / "schedsearch.yaml"
    text = card.read_text()
    assert "steps: 28" in text
    card.write_text(text.replace("steps: 28", "steps: 6"))
    return folder


@pytest.fixture(scope="session")
def steady_cost():
    """Stands in for `measure_cost`: a cost model of round numbers, the same on every machine."""
    from schedsearch.evaluate import CostModel, device_name
    from schedsearch.evaluate._cost import FEATURES, ModuleTimes
    from schedsearch.runtime import block_lists_of

    def cost(pipe, workload, *, device, **_):
        lists = block_lists_of(pipe)
        blocks = [block for each in lists for block in each]
        modules = [(b.name, 1.0) for b in blocks] + [(f"{b.name}.{c}", 0.3) for b in blocks for c in b.components]
        known = {"floor": 5.0, "loop": 0.5, "compute": 1.0, "saved": 1.0}
        return CostModel(
            device=device_name(device),
            full_ms=5.0 + workload.steps * (0.5 + 1.0 + len(blocks)),
            times=ModuleTimes(block_lists=lists, branches=1, rest_ms=1.0, modules=tuple(modules)),
            coefficients=tuple(known.get(name, 0.02) for name in FEATURES),
            residual=0.0,
        )

    return cost
