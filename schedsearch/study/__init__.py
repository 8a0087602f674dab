"""What has been tried: records, the frontier, and the study that keeps them."""

from schedsearch.study._frontier import Frontier
from schedsearch.study._records import Candidate, Evaluation, Objective
from schedsearch.study._study import JSON, Notes, Spent, Study

__all__ = ["JSON", "Candidate", "Evaluation", "Frontier", "Notes", "Objective", "Spent", "Study"]
