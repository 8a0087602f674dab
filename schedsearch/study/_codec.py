"""Evaluations as Optuna trials, and back, without loss.

A trial's values and state are what Optuna's own tools show; everything else is in one user attribute, ``evaluation``:
the text of the schedule's file, lineage, what was measured and what it cost. (One, because each attribute costs a
storage two queries.) This module does not know storages.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from schedsearch.errors import ScheduleError, StudyError
from schedsearch.schedule import dumps, loads
from schedsearch.study._records import Candidate, Evaluation
from schedsearch.types import Status

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_ATTRIBUTE = "evaluation"
_STATE_OF: dict[Status, str] = {"ok": "COMPLETE", "failed": "FAIL", "pruned": "PRUNED"}
_STATUS_OF: dict[str, Status] = {state: status for status, state in _STATE_OF.items()}


def trial_of(evaluation: Evaluation) -> FrozenTrial:
    """A finished trial that holds ``evaluation``."""
    from optuna.trial import TrialState, create_trial

    candidate = evaluation.candidate
    trial = create_trial(
        state=TrialState[_STATE_OF[evaluation.status]],
        values=list(evaluation.values) if evaluation.status == "ok" else None,
        user_attrs={
            _ATTRIBUTE: {
                "schedule": dumps(candidate.schedule),
                "searcher": candidate.searcher,
                "ask": candidate.ask,
                "parents": list(candidate.parents),
                "share": candidate.share,
                "polish": candidate.polish,
                "origin": candidate.origin,
                "reason": evaluation.reason,
                "metrics": [list(pair) for pair in evaluation.metrics],
                "samples": [[metric, list(values)] for metric, values in evaluation.samples],
                "fidelity": evaluation.fidelity,
                "device": evaluation.device,
                "seconds": evaluation.seconds,
                "denoiser_evals": evaluation.denoiser_evals,
            }
        },
    )
    trial.datetime_complete = datetime.now()  # noqa: DTZ005 - optuna stores local times without a zone
    return trial


def evaluation_of(trial: FrozenTrial) -> Evaluation:
    """The evaluation a trial holds.

    Raises:
        StudyError: if the trial was not written by `trial_of`, or was changed since.
    """
    try:
        fields: dict[str, Any] = trial.user_attrs[_ATTRIBUTE]
        candidate = Candidate(
            schedule=loads(fields["schedule"]),
            searcher=fields["searcher"],
            ask=fields["ask"],
            parents=tuple(fields["parents"]),
            share=fields["share"],
            polish=fields.get("polish", ""),  # studies of earlier releases have neither
            origin=fields.get("origin", ""),
        )
        return Evaluation(
            candidate=candidate,
            status=_STATUS_OF[trial.state.name],
            reason=fields["reason"],
            values=tuple(trial.values or ()),
            metrics=tuple((name, value) for name, value in fields["metrics"]),
            samples=tuple((metric, tuple(values)) for metric, values in fields["samples"]),
            fidelity=fields["fidelity"],
            device=fields["device"],
            seconds=fields["seconds"],
            denoiser_evals=fields["denoiser_evals"],
        )
    except (KeyError, TypeError, ValueError, ScheduleError) as error:
        raise StudyError(
            f"trial {trial.number}: found a record that cannot be read ({type(error).__name__}: {error}), expected one "
            "written by schedsearch. The storage was changed by something else; start a new study."
        ) from error
