"""The whole job, from a model's name and a budget to schedule files."""

from schedsearch.optimize._bench import Bench, OptimizeSettings, booked, denoiser_budgets, wanted_costs
from schedsearch.optimize._correct import CorrectSettings, run_correct
from schedsearch.optimize._display import Display
from schedsearch.optimize._finals import HELD_OUT_SEED
from schedsearch.optimize._numbers import score, set_score, timings
from schedsearch.optimize._results import Result
from schedsearch.optimize._run import Optimized, load_bench, measure_parts, optimize

__all__ = [
    "HELD_OUT_SEED",
    "Bench",
    "CorrectSettings",
    "Display",
    "OptimizeSettings",
    "Optimized",
    "Result",
    "booked",
    "denoiser_budgets",
    "load_bench",
    "measure_parts",
    "optimize",
    "run_correct",
    "score",
    "set_score",
    "timings",
    "wanted_costs",
]
