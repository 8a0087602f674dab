"""What a low-bit linear layer is made of: number formats, the layer itself, and how a device carries it out.

Needs torch alone; knows nothing of pipelines and schedules' steps.
"""

from __future__ import annotations

from schedsearch.quantize._clip import RATIOS, clipped_scale, static_scale, step_scales
from schedsearch.quantize._dual import Dual, dual_fake, dual_quantized
from schedsearch.quantize._error import output_error, simulated_output
from schedsearch.quantize._execution import EXECUTIONS, ORDER, Choice, execution_of, is_base, tolerance_of, why_not
from schedsearch.quantize._finite import FiniteTable, build_table, lookup
from schedsearch.quantize._formats import (
    FORMATS,
    Format,
    Quantized,
    activation_scales,
    average_bits,
    block_of,
    fake,
    format_of,
    quantized,
    scale_of,
)
from schedsearch.quantize._layer import TABLES, QuantLinear, check_tables, words_of
from schedsearch.quantize._lowrank import LowRank, low_rank
from schedsearch.quantize._rounding import BEAM, BEAM_UP_TO, Gram, Rounding, learned_rounding, packed, shifted, unpacked
from schedsearch.quantize._segments import Segments, find_segments
from schedsearch.quantize._smooth import (
    ALPHAS,
    DEFAULT_ALPHA,
    ChannelStatistics,
    Smoothing,
    searched_smoothing,
    smoothing,
)
from schedsearch.quantize._split import segment_scale, split_fake
from schedsearch.quantize._tables import TOOLS, LayerTables, corrected_bias, fit_tables
from schedsearch.schedule import SCALES

__all__ = [
    "ALPHAS",
    "BEAM",
    "BEAM_UP_TO",
    "DEFAULT_ALPHA",
    "EXECUTIONS",
    "FORMATS",
    "ORDER",
    "RATIOS",
    "SCALES",
    "TABLES",
    "TOOLS",
    "ChannelStatistics",
    "Choice",
    "Dual",
    "FiniteTable",
    "Format",
    "Gram",
    "LayerTables",
    "LowRank",
    "QuantLinear",
    "Quantized",
    "Rounding",
    "Segments",
    "Smoothing",
    "activation_scales",
    "average_bits",
    "block_of",
    "build_table",
    "check_tables",
    "clipped_scale",
    "corrected_bias",
    "dual_fake",
    "dual_quantized",
    "execution_of",
    "fake",
    "find_segments",
    "fit_tables",
    "format_of",
    "is_base",
    "learned_rounding",
    "lookup",
    "low_rank",
    "output_error",
    "packed",
    "quantized",
    "scale_of",
    "searched_smoothing",
    "segment_scale",
    "shifted",
    "simulated_output",
    "smoothing",
    "split_fake",
    "static_scale",
    "step_scales",
    "tolerance_of",
    "unpacked",
    "why_not",
    "words_of",
]
