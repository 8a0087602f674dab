"""Benchmark of the kernels: a kernel is timed only after it has matched its twin, and beside what torch has for it.

    python -m schedsearch_kernels.bench --csv kernels/bench/results/h100.csv

Needs a CUDA device and Triton. Rows say what was timed, on what, with which versions, when, and by which command.
"""
