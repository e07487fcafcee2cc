"""What each architecture costs: parameters, GFLOPs of a slice, speed of training and inference, peak memory.

    python benchmarks/architectures.py [--size 256] [NAME ...]

The same as `braintum models --benchmark`, kept, and printed as the table in the README.
"""

from __future__ import annotations

import argparse
import sys

from record import write

from braintum.console import BENCHMARK_COLUMNS, benchmark_cells, machine_line
from braintum.models.registry import architectures
from braintum.training.benchmark import benchmark
from braintum.training.progress import Progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="architectures; all of them if none is named")
    parser.add_argument("--size", type=int, default=256)
    given = parser.parse_args()
    measured = benchmark(given.names or architectures(), given.size, Progress("architectures"))
    write("architectures", measured, f"python {' '.join(sys.argv)}")
    print(f"\n| architecture | tasks | {' | '.join(BENCHMARK_COLUMNS)} |")
    print(f"|---|---|{'---:|' * len(BENCHMARK_COLUMNS)}")
    for name, row in measured["architectures"].items():
        print(f"| {' | '.join([name, ', '.join(row['tasks']), *benchmark_cells(row)])} |")
    print(f"\nBatches of {measured['batch']} slices. {machine_line(measured['machine'])}.")


if __name__ == "__main__":
    main()
