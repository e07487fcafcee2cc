"""Trains one Experiment with one fold held out, on as many workers as asked for.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/train.py --data URL --out URL --set model.name=attention_unet --fold 4 --workers 2

Arguments are those of `braintum train` (braintum/cli.py), which calls braintum.training.worker.train. After
`ray job stop` the same command with `--resume` goes on from the last finished epoch.
"""

import sys

from braintum.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
