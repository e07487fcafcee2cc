"""Ingests a source, in parallel where it is large; the node where the job runs reads it and must see its files.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/ingest.py folder /mnt/slices --out s3://bucket/cheng

Arguments are those of `braintum ingest` (braintum/cli_ingest.py), which calls braintum.data.ingest.
After `ray job stop` the same command goes on with the shards that are not there yet.
"""

import sys

from braintum.cli import main

if __name__ == "__main__":
    sys.exit(main(["ingest", *sys.argv[1:]]))
