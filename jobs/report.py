"""Writes the report of a study, a cross-validation or a run where its files are.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/report.py URL

Arguments are those of `braintum report` (braintum/cli.py), which calls braintum.reporting.html.report.
"""

import sys

from braintum.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
