"""What the benchmark programs of this package share: common options, the loaded model, and rows as CSV.

Knows nothing of what they measure.
"""

# ruff: noqa: T201 -- a part of programs
from __future__ import annotations

import argparse
import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from schedsearch.evaluate._models import ModelCard, find_card, load_pipeline
from schedsearch.evaluate._workload import Pipeline, Workload

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def common_options(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all programs have: model, device, threads and CSV file."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="flux-mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's own choice if not given")
    parser.add_argument("--csv", type=Path)
    return parser


def opened(options: argparse.Namespace) -> tuple[ModelCard, Pipeline, Workload]:
    """Return the model that the options name, in float32, and how it is called; set the number of threads."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    card = find_card(options.model)
    pipe: Any = load_pipeline(card, device=options.device, dtype=torch.float32)
    return card, pipe, Workload.from_card(card)


def write_rows(path: Path | None, rows: Sequence[DataclassInstance]) -> None:
    """Write the rows as CSV and say so, if there is a path."""
    if path is None or not rows:
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        names = [field.name for field in dataclasses.fields(rows[0])]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)
    print(f"Wrote {path}")
