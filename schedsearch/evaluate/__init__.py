"""Who measures: models, quality, wall time, multiply-accumulates, the cost model, and the evaluator over them.

Names are loaded on first use, so that listing models does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schedsearch.evaluate._affine import AffineFit, AffineSums
    from schedsearch.evaluate._calibrate import measure_cost
    from schedsearch.evaluate._calibration import Calibrated, calibrate
    from schedsearch.evaluate._correction import (
        LAYER_TABLES,
        Corrected,
        CorrectionError,
        LayerTables,
        correct_layers,
        correct_rows,
        without_corrections,
    )
    from schedsearch.evaluate._cost import CostModel
    from schedsearch.evaluate._device_formats import denoiser_formats, with_linear_prices, worthwhile
    from schedsearch.evaluate._evaluator import PipelineEvaluator
    from schedsearch.evaluate._held_out import HELD_OUT_ROUNDS, HeldOutRow, evaluate_held_out
    from schedsearch.evaluate._latency import (
        LatencySamples,
        Ratio,
        TimedRun,
        device_name,
        measure_latency,
        paired_ratio,
    )
    from schedsearch.evaluate._latency_table import LatencyTable, read_table, write_table
    from schedsearch.evaluate._latent_errors import LatentErrors
    from schedsearch.evaluate._linears import Linears, base_word, linears_of, resident_bytes, weight_bytes
    from schedsearch.evaluate._macs import MacTable, count_macs, schedule_macs
    from schedsearch.evaluate._memory import MemoryModel, memory_model
    from schedsearch.evaluate._models import CardStatus, ModelCard, cards, find_card, load_pipeline
    from schedsearch.evaluate._noise import initial_latents
    from schedsearch.evaluate._policy import POLICIES, CalibrationPolicy, Scales, find_policy, parse_policy, policy_of
    from schedsearch.evaluate._polish import polishing_calls
    from schedsearch.evaluate._prices import LinearPrices
    from schedsearch.evaluate._probing import measure_probe
    from schedsearch.evaluate._quality import (
        FEWEST_FOR_KID,
        METRICS,
        REFERENCES,
        QualityMetric,
        ReferenceName,
        described,
        find_metric,
        find_metrics,
        metrics_at_hand,
    )
    from schedsearch.evaluate._reference import REFINEMENT, PairedRuns
    from schedsearch.evaluate._rounds import Contender, Look, SideBySide, Turn, told
    from schedsearch.evaluate._scoring import Pictures, Scoring, Tally
    from schedsearch.evaluate._sensitivity import (
        SensitivityMeter,
        SensitivityPlan,
        choices_of,
        measure_sensitivities,
    )
    from schedsearch.evaluate._trajectory import Trajectory
    from schedsearch.evaluate._transfer import Condition, TransferRow, evaluate_at, require_drawable
    from schedsearch.evaluate._workload import TextEmbeds, Workload, decode_latents, encode_prompts, pipeline_kwargs

__all__ = [
    "FEWEST_FOR_KID",
    "HELD_OUT_ROUNDS",
    "LAYER_TABLES",
    "METRICS",
    "POLICIES",
    "REFERENCES",
    "REFINEMENT",
    "AffineFit",
    "AffineSums",
    "Calibrated",
    "CalibrationPolicy",
    "CardStatus",
    "Condition",
    "Contender",
    "Corrected",
    "CorrectionError",
    "CostModel",
    "HeldOutRow",
    "LatencySamples",
    "LatencyTable",
    "LatentErrors",
    "LayerTables",
    "LinearPrices",
    "Linears",
    "Look",
    "MacTable",
    "MemoryModel",
    "ModelCard",
    "PairedRuns",
    "Pictures",
    "PipelineEvaluator",
    "QualityMetric",
    "Ratio",
    "ReferenceName",
    "Scales",
    "Scoring",
    "SensitivityMeter",
    "SensitivityPlan",
    "SideBySide",
    "Tally",
    "TextEmbeds",
    "TimedRun",
    "Trajectory",
    "TransferRow",
    "Turn",
    "Workload",
    "base_word",
    "calibrate",
    "cards",
    "choices_of",
    "correct_layers",
    "correct_rows",
    "count_macs",
    "decode_latents",
    "denoiser_formats",
    "described",
    "device_name",
    "encode_prompts",
    "evaluate_at",
    "evaluate_held_out",
    "find_card",
    "find_metric",
    "find_metrics",
    "find_policy",
    "initial_latents",
    "linears_of",
    "load_pipeline",
    "measure_cost",
    "measure_latency",
    "measure_probe",
    "measure_sensitivities",
    "memory_model",
    "metrics_at_hand",
    "paired_ratio",
    "parse_policy",
    "pipeline_kwargs",
    "policy_of",
    "polishing_calls",
    "read_table",
    "require_drawable",
    "resident_bytes",
    "schedule_macs",
    "told",
    "weight_bytes",
    "with_linear_prices",
    "without_corrections",
    "worthwhile",
    "write_table",
]

_HOME = {
    "FEWEST_FOR_KID": "_quality",
    "Calibrated": "_calibration",
    "CalibrationPolicy": "_policy",
    "POLICIES": "_policy",
    "Scales": "_policy",
    "calibrate": "_calibration",
    "find_policy": "_policy",
    "parse_policy": "_policy",
    "policy_of": "_policy",
    "AffineFit": "_affine",
    "AffineSums": "_affine",
    "CardStatus": "_models",
    "Condition": "_transfer",
    "Corrected": "_correction",
    "CorrectionError": "_correction",
    "Contender": "_rounds",
    "CostModel": "_cost",
    "HELD_OUT_ROUNDS": "_held_out",
    "HeldOutRow": "_held_out",
    "LAYER_TABLES": "_correction",
    "LatencySamples": "_latency",
    "LatencyTable": "_latency_table",
    "LatentErrors": "_latent_errors",
    "LayerTables": "_correction",
    "LinearPrices": "_prices",
    "Linears": "_linears",
    "METRICS": "_quality",
    "Look": "_rounds",
    "MacTable": "_macs",
    "MemoryModel": "_memory",
    "ModelCard": "_models",
    "PairedRuns": "_reference",
    "Pictures": "_scoring",
    "PipelineEvaluator": "_evaluator",
    "QualityMetric": "_quality",
    "REFERENCES": "_quality",
    "REFINEMENT": "_reference",
    "Ratio": "_latency",
    "ReferenceName": "_quality",
    "Scoring": "_scoring",
    "SensitivityMeter": "_sensitivity",
    "SensitivityPlan": "_sensitivity",
    "SideBySide": "_rounds",
    "Tally": "_scoring",
    "TextEmbeds": "_workload",
    "TimedRun": "_latency",
    "Trajectory": "_trajectory",
    "TransferRow": "_transfer",
    "Turn": "_rounds",
    "Workload": "_workload",
    "base_word": "_linears",
    "cards": "_models",
    "choices_of": "_sensitivity",
    "correct_layers": "_correction",
    "correct_rows": "_correction",
    "count_macs": "_macs",
    "decode_latents": "_workload",
    "denoiser_formats": "_device_formats",
    "described": "_quality",
    "device_name": "_latency",
    "encode_prompts": "_workload",
    "evaluate_at": "_transfer",
    "evaluate_held_out": "_held_out",
    "find_card": "_models",
    "find_metric": "_quality",
    "find_metrics": "_quality",
    "initial_latents": "_noise",
    "linears_of": "_linears",
    "load_pipeline": "_models",
    "measure_cost": "_calibrate",
    "measure_latency": "_latency",
    "measure_probe": "_probing",
    "measure_sensitivities": "_sensitivity",
    "memory_model": "_memory",
    "metrics_at_hand": "_quality",
    "paired_ratio": "_latency",
    "pipeline_kwargs": "_workload",
    "polishing_calls": "_polish",
    "read_table": "_latency_table",
    "require_drawable": "_transfer",
    "resident_bytes": "_linears",
    "schedule_macs": "_macs",
    "told": "_rounds",
    "weight_bytes": "_linears",
    "without_corrections": "_correction",
    "with_linear_prices": "_device_formats",
    "worthwhile": "_device_formats",
    "write_table": "_latency_table",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
