"""What may be searched: the legal set of schedules for one model, read from a YAML file per model family."""

from schedsearch.space._cross import crossed
from schedsearch.space._forbidden import Forbidden
from schedsearch.space._fuse import calls_of, fused
from schedsearch.space._genome import MAX_RANGES, Genome, Range, StepGene, genome_of, runs_of, schedule_of
from schedsearch.space._load import load_space, shipped_spaces, space_file
from schedsearch.space._precision import GROUPINGS, LayerGroup, LinearLayers, PrecisionAxis
from schedsearch.space._solvers import solver_like
from schedsearch.space._space import LEVELS, SearchSpace
from schedsearch.space._trim import trimmed
from schedsearch.space._vary import FORMAT_OPERATORS, OPERATORS, Operator, mutated, operators_of
from schedsearch.space._warps import WARPS, warp
from schedsearch.space._yaml import read_yaml, shown

__all__ = [
    "FORMAT_OPERATORS",
    "GROUPINGS",
    "LEVELS",
    "MAX_RANGES",
    "OPERATORS",
    "WARPS",
    "Forbidden",
    "Genome",
    "LayerGroup",
    "LinearLayers",
    "Operator",
    "PrecisionAxis",
    "Range",
    "SearchSpace",
    "StepGene",
    "calls_of",
    "crossed",
    "fused",
    "genome_of",
    "load_space",
    "mutated",
    "operators_of",
    "read_yaml",
    "runs_of",
    "schedule_of",
    "shipped_spaces",
    "shown",
    "solver_like",
    "space_file",
    "trimmed",
    "warp",
]
