"""Searches the architectures of a space with Optuna on Ray Tune, and cross-validates the winner of each.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/search.py search_spaces/quick.yaml --data URL --out URL

Arguments are those of `braintum search` (braintum/cli.py), which calls braintum.tuning.study.search, or with `--nested`
braintum.tuning.nested.nested_search. After `ray job stop` the same command with
`--resume` goes on without repeating finished epochs or trials.
"""

import sys

from braintum.cli import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
