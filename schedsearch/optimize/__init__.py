"""The whole job, from a model's name and a budget to schedule files."""

from schedsearch.optimize._bench import OptimizeSettings
from schedsearch.optimize._display import Display
from schedsearch.optimize._results import Result
from schedsearch.optimize._run import Optimized, optimize

__all__ = ["Display", "OptimizeSettings", "Optimized", "Result", "optimize"]
