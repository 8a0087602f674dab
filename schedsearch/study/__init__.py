"""What has been tried: records, the frontier, the study that keeps them; and comparisons with other ways."""

from schedsearch.study._comparison import (
    OURS,
    PLAIN,
    Absent,
    Cause,
    Comparison,
    Conditions,
    Family,
    Interval,
    Measure,
    Row,
    Score,
    Verdict,
    Version,
    read_comparison,
    write_comparison,
)
from schedsearch.study._finals import MeasuredRun, measured_runs, speed_labels
from schedsearch.study._frontier import Frontier
from schedsearch.study._probe import BlockProbe, Probe
from schedsearch.study._records import Candidate, Evaluation, Objective
from schedsearch.study._study import JSON, Notes, Spent, Study
from schedsearch.study._verdicts import front, mean_of, median_of, rows_on_front, verdict, verdicts

__all__ = [
    "JSON",
    "OURS",
    "PLAIN",
    "Absent",
    "BlockProbe",
    "Candidate",
    "Cause",
    "Comparison",
    "Conditions",
    "Evaluation",
    "Family",
    "Frontier",
    "Interval",
    "Measure",
    "MeasuredRun",
    "Notes",
    "Objective",
    "Probe",
    "Row",
    "Score",
    "Spent",
    "Study",
    "Verdict",
    "Version",
    "front",
    "mean_of",
    "measured_runs",
    "median_of",
    "read_comparison",
    "rows_on_front",
    "speed_labels",
    "verdict",
    "verdicts",
    "write_comparison",
]
