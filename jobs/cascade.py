"""Cross-validates a cascade: a segmenter, then a classifier of the crop that it finds, scored as one model.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/cascade.py --data URL --out URL --segmenter STUDY/best/unet.yaml \
        --classifier STUDY/best/classifier.yaml

Arguments are those of `braintum cascade` (braintum/cli.py), which calls braintum.training.cascade.cascade. After
`ray job stop` the same command with `--resume` goes on without repeating finished epochs.
"""

import sys

from braintum.cli import main

if __name__ == "__main__":
    sys.exit(main(["cascade", *sys.argv[1:]]))
