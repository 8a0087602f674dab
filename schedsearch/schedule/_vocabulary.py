"""The closed lists and limits of the format, and nothing else.

Every limit is here once: ``_validate.py`` enforces it, ``_schema.py`` writes it into the JSON schema and ``FORMAT.md``
states it. This module does not know what a schedule is.
"""

from __future__ import annotations

FORMAT = "schedsearch.schedule"
VERSION = (1, 0)

COMPUTE = "C"
REUSE = "R"
SKIP = "S"
FORECASTS = "123"
OPS = COMPUTE + REUSE + FORECASTS + SKIP

MODEL_ROW = "model"
"""Name of the row that speaks of the whole denoiser."""

NO_GUIDANCE = "-"
"""How a file writes a step without an unconditional pass."""

FAMILIES = ("euler", "heun", "adams", "plms", "dpm", "unipc", "table")
FIXED_ORDER = {"euler": 1, "heun": 2}
"""Families that exist at one order only; asking for another would give one run two ids."""
MAX_ORDER = 4
PREDICTIONS = ("velocity", "noise", "data")
CORRECTORS = ("none", "pseudo", "implicit")
ESTIMATES = ("default", "taylor", "midpoint", "heun", "bh1", "bh2")
ESTIMATING = ("dpm", "unipc")
"""Families that estimate derivatives in more than one way; the others have their one."""
TABLE_FAMILY = "table"
SOLVER_TENSOR = "solver"
"""Name of the side file's tensor that holds the coefficients of `TABLE_FAMILY` steps."""
NUMBER_FORMATS = (
    "fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "int8", "int6", "int5", "int4", "int3", "int2", "fp4_e2m1", "nf4",
    "mxfp8", "nvfp4",
)  # fmt: skip
FLOAT_FORMATS = NUMBER_FORMATS[:3]
"""Formats that are dtypes of every device, without scales."""
ROW_FORMATS = ("fp8_e4m3", "fp8_e5m2", "int8")
"""Formats whose scales are one per row unless a rule says otherwise."""
GROUP_FORMATS = ("int6", "int5", "int4", "int3", "int2", "fp4_e2m1", "nf4")
"""Formats whose weights have one scale per group unless a rule says otherwise."""
SCALES = ("default", "row", "tensor")
MAX_LOW_RANK = 1024
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1,
}  # fmt: skip
"""Bytes of one element, by safetensors' name of its type."""
TENSOR_DTYPES = tuple(DTYPE_BYTES)
DIRECTIONS = ("min", "max")

SOLVER_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Letters a file gives to its distinct solvers, by first appearance."""

SIDE_ENDING = ".safetensors"
MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_SIDE_BYTES = 64 * 1024 * 1024
MAX_NESTING = 16
MAX_ITEMS = 100_000
MAX_INT_DIGITS = 20
MAX_STEPS = 1000
MAX_ROWS = 20_000
MAX_OP_CHARS = 3_000_000
MAX_NAME = 256
MAX_TEXT = 2000
MAX_RULES = 1000
MAX_STARS = 8
MAX_PRUNED = 10_000
MAX_TENSORS = 10_000
MAX_RANK = 8
MAX_DIMENSION = 2**31 - 1
MAX_PIXELS = 65_536
MAX_BATCH = 65_536
MAX_ADAPTERS = 64
MAX_MEASURED = 1000
MAX_PARENTS = 64
MAX_SCHEDULES = 1000
MAX_COUNT = 2**63 - 1

NAME_PATTERN = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*"
GLOB_PATTERN = r"[A-Za-z0-9_.*?\[\]!-]+"
CLASS_PATTERN = r"[A-Za-z_][A-Za-z0-9_]*"
FILE_PATTERN = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
HASH_PATTERN = r"[0-9a-f]{64}"
ID_PATTERN = r"sha256:[0-9a-f]{64}"
DATE_PATTERN = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
VERSION_PATTERN = r"[0-9]{1,4}\.[0-9]{1,4}"
