"""Ingests a folder of slices, in one process on the node where the job runs; that node must see the folder.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/ingest.py folder /mnt/slices --out s3://bucket/cheng

Arguments are those of `braintum ingest` (braintum/cli.py), which calls braintum.data.ingest.folder.ingest_folder.
"""

import sys

from braintum.cli import main

if __name__ == "__main__":
    sys.exit(main(["ingest", *sys.argv[1:]]))
