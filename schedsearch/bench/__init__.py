"""Side by side: searchers against each other, a frontier against fewer steps and hand-made schedules, single axes.

Every number of the README's and the docs' tables comes from here, by a command printed beside it. So do the numbers of
a schedule at other resolutions, batches and step numbers than it was searched at.
"""

from schedsearch.bench._cachequant import CacheQuantRow, CacheQuantSettings, run_cachequant
from schedsearch.bench._calibration import CalibrateSettings, run_calibrate
from schedsearch.bench._compare import run_compare
from schedsearch.bench._compare_settings import CompareSettings, families, families_named
from schedsearch.bench._contest import ABLATION, CONTESTANTS, Contestant, ContestSettings, contest
from schedsearch.bench._curves import Curve, curves_of, summary_of
from schedsearch.bench._elsewhere import TransferSettings, run_transfer
from schedsearch.bench._families import FAMILIES
from schedsearch.bench._profile import ProfileSettings, run_profile
from schedsearch.bench._report import run_contest
from schedsearch.bench._sensitivity import SensitivitySettings, run_sensitivity
from schedsearch.bench._speeds import SpeedSettings, run_speeds
from schedsearch.bench._speeds_table import SpeedRow

__all__ = [
    "ABLATION",
    "CONTESTANTS",
    "FAMILIES",
    "CacheQuantRow",
    "CacheQuantSettings",
    "CalibrateSettings",
    "CompareSettings",
    "ContestSettings",
    "Contestant",
    "Curve",
    "ProfileSettings",
    "SensitivitySettings",
    "SpeedRow",
    "SpeedSettings",
    "TransferSettings",
    "contest",
    "curves_of",
    "families",
    "families_named",
    "run_cachequant",
    "run_calibrate",
    "run_compare",
    "run_contest",
    "run_profile",
    "run_sensitivity",
    "run_speeds",
    "run_transfer",
    "summary_of",
]
