"""Jobs that a new head starts again: each is kept as a file under a URL until it has ended.

    python cluster/kept_jobs.py submit s3://bucket/jobs NAME python jobs/search.py ... --resume
    python cluster/kept_jobs.py again s3://bucket/jobs
    python cluster/kept_jobs.py forget s3://bucket/jobs NAME

`ray up`, and a reboot of the head, end with `again`. Ray itself forgets its jobs with their head. A job that is done,
was asked for wrongly or was stopped (exit codes 0, 2 and 130) is kept no longer; one that failed is, and its next
chance is the next head. Who may write to the URL says what the head runs.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import fsspec
import yaml
from ray.job_submission import JobSubmissionClient

REPOSITORY = Path(__file__).resolve().parents[1]


def submit(url: str, name: str, *command: str) -> None:
    """Keeps a job, and starts it unless one of its name is running."""
    with fsspec.open(f"{url}/{name}", "w") as kept:
        kept.write(shlex.join(command))
    start(url, name)


def again(url: str) -> None:
    """Starts every kept job that is not running."""
    files, path = fsspec.core.url_to_fs(url)
    for kept in sorted(files.find(path)):
        start(url, kept.rsplit("/", 1)[-1])


def forget(url: str, name: str) -> None:
    files, path = fsspec.core.url_to_fs(f"{url}/{name}")
    files.rm(path)


def start(url: str, name: str) -> None:
    client = JobSubmissionClient()
    before = {job.submission_id: job.status for job in client.list_jobs()}
    if name in before:
        if not before[name].is_terminal():
            print(f"{name}: is running")
            return
        client.delete_job(name)
    with fsspec.open(f"{url}/{name}", "r") as kept:
        command = kept.read()
    forgets = shlex.join([sys.executable, str(Path(__file__).resolve()), "forget", url, name])
    environment = yaml.safe_load((REPOSITORY / "jobs" / "runtime_env.yaml").read_text())
    client.submit_job(
        # the trap: `ray job stop` interrupts the shell too, which must outlive what it runs to hear how that ended
        entrypoint=f"trap : INT; {command}; code=$?; case $code in 0|2|130) {forgets};; esac; exit $code",
        submission_id=name,
        runtime_env={**environment, "working_dir": str(REPOSITORY)},
    )
    print(f"{name}: started; ray job logs --follow {name}")


if __name__ == "__main__":
    action, *arguments = sys.argv[1:]
    {"submit": submit, "again": again, "forget": forget}[action](*arguments)
