"""Benchmarks: one file for each op, one harness that knows no op, and the report drawn from the results.

bench_<op>.py has the op's cases (``CASES``, by device type): for each the inputs, the contestants and the bytes that
the op must move. contest.py verifies and times them, devices.py has the clocks, conftest.py the options and the
writing of the results, report.py the tables and the plots, floors.py and NOTES.md what was to be expected and tried,
targets.py what is to be shown on a GPU.
"""
