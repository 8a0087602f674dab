"""The schedule format: stdlib only."""

from schedsearch.schedule._budget import Budget, parse_budget, parse_bytes
from schedsearch.schedule._canonical import canonical_bytes
from schedsearch.schedule._codec import ScheduleVersionWarning, dumps, loads, read_schedule, write_schedule
from schedsearch.schedule._correction import CORRECTION, corrected_row, corrections
from schedsearch.schedule._ecad_cost import FLUX_DEV, FluxStructure, ecad_macs
from schedsearch.schedule._files import write_atomically
from schedsearch.schedule._frontier import FrontierEntry, FrontierIndex, read_frontier, write_frontier
from schedsearch.schedule._html import table as html_table
from schedsearch.schedule._interchange import from_ecad, from_smoothcache, to_ecad, to_smoothcache
from schedsearch.schedule._model import Schedule
from schedsearch.schedule._parts import (
    Measurement,
    ModelRef,
    PrecisionRule,
    Provenance,
    Solver,
    Tables,
    TableTensor,
    rule_of,
)
from schedsearch.schedule._rows import RowGroup, computes, ranges, row_groups
from schedsearch.schedule._side import Tensor as SideTensor
from schedsearch.schedule._side import solver_table, with_layer_tables, with_solver_table, with_tensors
from schedsearch.schedule._vocabulary import (
    COMPUTE,
    CORRECTORS,
    ESTIMATES,
    FAMILIES,
    FORECASTS,
    FORMAT,
    MAX_SIDE_BYTES,
    MAX_STEPS,
    MODEL_ROW,
    NUMBER_FORMATS,
    OPS,
    PREDICTIONS,
    REUSE,
    SCALES,
    SKIP,
    SOLVER_TENSOR,
    TABLE_FAMILY,
    VERSION,
)
from schedsearch.schedule._words import format_word, rule_of_word, rule_word

__all__ = [
    "COMPUTE",
    "CORRECTION",
    "CORRECTORS",
    "ESTIMATES",
    "FAMILIES",
    "FLUX_DEV",
    "FORECASTS",
    "FORMAT",
    "MAX_SIDE_BYTES",
    "MAX_STEPS",
    "MODEL_ROW",
    "NUMBER_FORMATS",
    "OPS",
    "PREDICTIONS",
    "REUSE",
    "SCALES",
    "SKIP",
    "SOLVER_TENSOR",
    "TABLE_FAMILY",
    "VERSION",
    "Budget",
    "FluxStructure",
    "FrontierEntry",
    "FrontierIndex",
    "Measurement",
    "ModelRef",
    "PrecisionRule",
    "Provenance",
    "RowGroup",
    "Schedule",
    "ScheduleVersionWarning",
    "SideTensor",
    "Solver",
    "TableTensor",
    "Tables",
    "canonical_bytes",
    "computes",
    "corrected_row",
    "corrections",
    "dumps",
    "ecad_macs",
    "format_word",
    "from_ecad",
    "from_smoothcache",
    "html_table",
    "loads",
    "parse_budget",
    "parse_bytes",
    "ranges",
    "read_frontier",
    "read_schedule",
    "row_groups",
    "rule_of",
    "rule_of_word",
    "rule_word",
    "solver_table",
    "to_ecad",
    "to_smoothcache",
    "with_layer_tables",
    "with_solver_table",
    "with_tensors",
    "write_atomically",
    "write_frontier",
    "write_schedule",
]
