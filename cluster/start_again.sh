#!/usr/bin/env bash
# After a reboot of the head (cron runs it): what `ray up` ran to start Ray, with what it had set, and so the kept jobs.
# A head on demand is rebooted by AWS and by Google when its host fails.
set -euo pipefail
. ~/.ray/head_environment
. ~/braintum/cluster/environment.sh
commands=$(python -c '
import json, pathlib
config = json.loads((pathlib.Path.home() / "ray_bootstrap_config.yaml").read_text())
print(*config["head_start_ray_commands"], sep="\n")
')
bash -e -c "$commands"
