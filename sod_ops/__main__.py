"""python -m sod_ops: what is here (doctor), what it is worth on a model (accelerate), the benchmarks (bench)."""

import sys

from sod_ops.cli.main import main

if __name__ == "__main__":
    sys.exit(main(may_restart=True))
