"""The benchmark's command line."""

# ruff: noqa: T201 -- a program
from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from schedsearch_kernels._dispatch import IMPLEMENTATIONS, why_not_triton
from schedsearch_kernels.bench._cases import LINEARS, OPERATIONS, SMALL_LINEARS, Case, Setting, cases
from schedsearch_kernels.bench._table import Row, Stamp, append, commit_of, printed, rows_of
from schedsearch_kernels.bench._timing import Call, Stopwatch, medians_ms, stopwatch


def run_case(
    case: Case, watch: Stopwatch, stamp: Stamp, *, implementation: str, rounds: int
) -> tuple[tuple[Row, ...], list[str]]:
    """Returns the rows of a case and what went wrong, one line each; no rows if it fails its gate."""
    what = f"{case.work.op} {case.work.dtype} {case.work.shape}"
    difference = case.difference()
    if not difference <= case.tolerance:
        found = f"a difference of {difference:.3g}, expected at most {case.tolerance:.3g}"
        return (), [f"{what}: gate failed: found {found}"]
    working, remarks = _working({**case.peers, **case.others}, what)
    medians = medians_ms({implementation: case.timed, **working}, watch, rounds=rounds)
    rows = rows_of(case.work, medians, [name for name in case.peers if name in working], stamp)
    share = rows[0].share
    bound = case.bound if implementation == "triton" else None
    if bound is not None and share is not None and share < bound:
        remarks.append(f"{what}: {share:.1%} of the best peer, wanted {bound:.0%}")
    return rows, remarks


def _working(calls: Mapping[str, Call], what: str) -> tuple[dict[str, Call], list[str]]:
    """Splits calls into those that run here and a line for each that does not, with its reason."""
    working, remarks = {}, []
    for name, call in calls.items():
        try:
            call()
        except Exception as error:  # noqa: BLE001 - a peer may fail as it likes; the reason is printed
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            remarks.append(f"{what}: {name} left out: {reason}")
        else:
            working[name] = call
    return working, remarks


def stamp_of(device: torch.device, words: Sequence[str]) -> Stamp:
    """Returns where the rows of this run come from."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = ""
    return Stamp(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        torch=torch.__version__,
        triton=triton,
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        commit=commit_of(Path(__file__).parent),
        command=shlex.join(["python", "-m", "schedsearch_kernels.bench", *words]),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark, prints and writes its rows; 0 if every kernel passed its gate and reached its bound."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    device = torch.device(options.device)
    reason = why_not_triton(device)
    if options.implementation == "triton" and reason is not None:
        print(f"implementation: found that {reason}, expected a machine that runs the kernels.", file=sys.stderr)
        return 2
    setting = Setting(
        device=device,
        implementation=options.implementation,
        linears=SMALL_LINEARS if options.small else LINEARS,
    )
    watch, stamp = stopwatch(device), stamp_of(device, words)
    print(f"{stamp.device}; torch {stamp.torch}, triton {stamp.triton or 'none'}, commit {stamp.commit or 'none'}")
    remarks = []
    for case in _all_cases(options.ops, setting):
        rows, found = run_case(case, watch, stamp, implementation=options.implementation, rounds=options.rounds)
        remarks += found
        print("\n".join([printed(row) for row in rows] + found), flush=True)
        if options.csv is not None and rows:
            append(options.csv, rows)
    missed = [line for line in remarks if "left out" not in line]
    print(f"{len(missed)} gates or bounds missed" + "".join(f"\n  {line}" for line in missed))
    if options.csv is not None:
        print(f"Wrote {options.csv}")
    return 1 if missed else 0


def _all_cases(operations: Sequence[str], setting: Setting) -> Iterable[Case]:
    for operation in operations:
        yield from cases(operation, setting)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m schedsearch_kernels.bench",
        description="Check each kernel against its twin, then time it beside what torch has for the same work.",
    )
    parser.add_argument("--ops", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--csv", type=Path, help="file to append the rows to")
    parser.add_argument("--small", action="store_true", help="one small shape, to try the benchmark out")
    parser.add_argument(
        "--implementation", choices=IMPLEMENTATIONS, default="triton", help="reference times the twin, anywhere"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
