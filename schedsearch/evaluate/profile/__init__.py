"""Times what a denoiser is made of on the device at hand: every operation in every number format, and whole schedules.

Works on a loaded pipeline, and on one of random weights: what an operation takes does not depend on the numbers in it.
"""

from __future__ import annotations

from schedsearch.evaluate._latency_table import LoopRow, Mode, OpRow, TableHeader, parse_word
from schedsearch.evaluate._linears import protects
from schedsearch.evaluate._prices import unmeasured
from schedsearch.evaluate.profile._loops import (
    example_schedules,
    measure_loops,
    predicted_speedup,
    require_size,
    table_times,
)
from schedsearch.evaluate.profile._measure import dtype_word, measure_table, table_header
from schedsearch.evaluate.profile._operations import Operation, operations_of
from schedsearch.evaluate.profile._random import (
    Architecture,
    architecture_of,
    meta_denoiser,
    random_embeds,
    random_pipeline,
)
from schedsearch.schedule import rule_word

__all__ = [
    "Architecture",
    "LoopRow",
    "Mode",
    "OpRow",
    "Operation",
    "TableHeader",
    "architecture_of",
    "dtype_word",
    "example_schedules",
    "measure_loops",
    "measure_table",
    "meta_denoiser",
    "operations_of",
    "parse_word",
    "predicted_speedup",
    "protects",
    "random_embeds",
    "random_pipeline",
    "require_size",
    "rule_word",
    "table_header",
    "table_times",
    "unmeasured",
]
