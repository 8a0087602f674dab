"""Side by side: searchers against each other, a frontier against fewer steps and hand-made schedules, axes on their own.

Every number of the README's and the docs' tables comes from here, by a command printed beside it.
"""

from schedsearch.bench._contest import ABLATION, CONTESTANTS, ContestSettings, contest
from schedsearch.bench._curves import Curve, curves_of, summary_of

__all__ = ["ABLATION", "CONTESTANTS", "ContestSettings", "Curve", "contest", "curves_of", "summary_of"]
