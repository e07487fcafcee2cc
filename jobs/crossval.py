"""Cross-validates one Experiment: a training a fold.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/crossval.py --data URL --out URL --config STUDY/best/joint_unet.yaml

Arguments are those of `braintum crossval` (braintum/cli.py), which calls braintum.training.crossval.crossval. After
`ray job stop` the same command with `--resume` goes on without repeating finished epochs.
"""

import sys

from braintum.cli import main

if __name__ == "__main__":
    sys.exit(main(["crossval", *sys.argv[1:]]))
