"""optuna-dashboard on a study's storage shows the study's objectives, by name, direction and value."""

from __future__ import annotations

import io
import json
from wsgiref.util import setup_testing_defaults

import numpy as np
import optuna
import pytest

from schedsearch.study import Candidate, Evaluation, Objective, Study
from schedsearch.testing import toy_space

optuna_dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")

OBJECTIVES = (Objective(name="latency_ms", unit="ms", better="min"), Objective(name="psnr", unit="dB", better="max"))
SPACE = toy_space((("model", "CR123"), ("component", "CR")))


@pytest.fixture
def url(tmp_path):
    """The storage of a study with four records, one of them a failure."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with Study.open(url, "search", objectives=OBJECTIVES, settings={"seed": 1}, resume=False) as study:
        for ask in range(4):
            schedule = SPACE.sample(np.random.default_rng(ask))
            study.append(
                Evaluation(
                    candidate=Candidate(schedule=schedule, searcher="auto", ask=ask),
                    status="failed" if ask == 2 else "ok",
                    reason="no memory left" if ask == 2 else "",
                    values=() if ask == 2 else (100.0 - ask / 3, 20.0 + ask / 7),
                    fidelity=8,
                )
            )
    return url


@pytest.fixture
def asked(url):
    """Asks the dashboard's own program, without a server."""
    storage = optuna.storages.RDBStorage(url)
    app = optuna_dashboard.wsgi(storage)

    def ask(path, query=""):
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": query, "wsgi.input": io.BytesIO()}
        setup_testing_defaults(environ)
        told = []
        body = b"".join(app(environ, lambda status, headers, *_: told.append(status)))
        assert told == ["200 OK"], body
        return json.loads(body)

    yield ask
    storage.remove_session()
    storage.engine.dispose()


def test_the_dashboard_shows_the_objectives_of_the_study(url, asked):
    (summary,) = asked("/api/studies")["study_summaries"]
    assert summary["study_name"] == "search"
    assert summary["directions"] == ["minimize", "maximize"]
    detail = asked(f"/api/studies/{summary['study_id']}", "after=0")
    with Study.load(url) as study:
        assert detail["objective_names"] == [objective.name for objective in study.objectives]
        shown = {trial["number"]: (trial["state"], tuple(trial.get("values") or ())) for trial in detail["trials"]}
        assert shown == {
            e.candidate.ask: ("Complete" if e.status == "ok" else "Fail", e.values) for e in study.evaluations()
        }
        front = {e.candidate.ask for e in study.frontier()}
    assert {trial["number"] for trial in detail["best_trials"]} == front
