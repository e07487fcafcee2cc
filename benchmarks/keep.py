"""Keeps the summary of a study or a cross-validation among the recorded results.

python benchmarks/keep.py out/study cheng_quick "braintum search search_spaces/quick.yaml --data ... --out ..."

Keep it at the commit that it ran at: that of now is recorded with it. Its seconds stand in the summary.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from record import write


def main() -> None:
    directory, name, command = sys.argv[1:]
    summary = json.loads((Path(directory) / "summary.json").read_text())
    summary["data"] = {"digest": summary["data"]["digest"]}  # where it lay on that machine says nothing to others
    write(name, summary, command)


if __name__ == "__main__":
    main()
