"""Writes ``recorded-run.json``, which `test_eta.py` replays, from a run on this machine.

    python tests/optimize/record_run.py runs/flux-mini-4x

Only of a run with all its defaults, on a machine with nothing else to do: the test wants the times to be those of one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import optuna

from schedsearch.evaluate import CostModel
from schedsearch.optimize import Display, OptimizeSettings, load_bench
from schedsearch.optimize._bench import booked
from schedsearch.optimize._finals import FRESH, finalists
from schedsearch.optimize._fitting import FIT, fitting_evals
from schedsearch.study import Frontier, Study

EVERY = 20
"""Trials after which the finalists are written down."""


def recorded(folder: Path) -> dict[str, object]:
    """What the search in ``folder`` measured when, and who its finalists were on the way."""
    study = Study.load(str(folder))
    evaluations = study.evaluations()
    stored = optuna.load_study(study_name=study.name, storage=f"sqlite:///{folder / 'study.db'}")
    moments = [trial.datetime_complete for trial in stored.trials]
    cost = CostModel.from_json(str(study.notes["cost"]))
    bench = load_bench(OptimizeSettings(model="flux-mini", budget="4x"), Display())
    bench.cost = cost
    at = []
    for n in range(2 * EVERY, len(evaluations) + 1, EVERY):
        whole = [e for e in evaluations[:n] if e.status == "ok" and e.candidate.share == 1.0]
        plans = [e.candidate.schedule for e in finalists(bench, Frontier.of(study.objectives, whole))]
        at.append([n, [[round(cost.predict_ms(p), 2), fitting_evals(bench.space, p)] for p in plans]])
    kept = study.notes[f"finals {len(evaluations)}"]["rows"]
    return {
        "command": "schedsearch optimize --model flux-mini --budget 4x",
        "full_ms": round(cost.full_ms, 2),
        "steps": kept[0]["steps"],
        "prompts": [FIT, FRESH, 64],
        "fewer_steps": [row["steps"] for row in kept if row["kind"] == "fewer steps"],
        "finals_seconds": round(booked(study, f"finals {len(evaluations)}").seconds, 1),
        "records": [
            [
                round((moment - moments[0]).total_seconds(), 2),
                round(e.seconds, 3),
                e.denoiser_evals,
                e.fidelity,
                int(e.status == "ok"),
            ]
            for moment, e in zip(moments, evaluations, strict=True)
        ],
        "finalists": at,
    }


def text_of(run: dict[str, object]) -> str:
    """JSON with one record per line."""
    lines = []
    for key, value in run.items():
        if isinstance(value, list) and value and isinstance(value[0], list):
            rows = ",\n".join("  " + json.dumps(row) for row in value)
            lines.append(f' "{key}": [\n{rows}\n ]')
        else:
            lines.append(f' "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    out = Path(__file__).parent / "recorded-run.json"
    out.write_text(text_of(recorded(Path(sys.argv[1]))), "utf-8")
