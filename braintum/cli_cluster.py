"""`braintum cluster ...`: a cluster on this machine to try things with, and what is wrong with any other."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from braintum.options import Json, given, show, stdout_for

cluster = typer.Typer(help="A cluster of many nodes on this machine; what is wrong with a cluster.")


@cluster.command("local")
def local(
    nodes: Annotated[int, typer.Option(min=1, help="The most nodes, beside a head on which nothing trains.")] = 3,
    cpus: Annotated[int, typer.Option(min=1, help="Cores of a node; all share this machine's.")] = 1,
    idle_seconds: Annotated[float, typer.Option(min=1, help="After so long without work a node goes.")] = 60.0,
) -> None:
    """Starts a cluster that grows and shrinks by Ray's autoscaler, and ends it at ^C.

    Nodes come when trials wait for them. `RAY_ADDRESS`, which it prints, is what other commands find it by.
    """
    from braintum.cluster.local import LocalCluster

    with LocalCluster(nodes, cpus=cpus, idle_seconds=idle_seconds) as made:
        print(
            f"A head and up to {nodes} nodes of {cpus} CPU on this machine, dashboard at {made.dashboard}\n"
            f"(it asks for the token: `ray get-auth-token`). ^C ends it. In another terminal:\n\n"
            f"    export RAY_AUTH_MODE=token RAY_ADDRESS={made.address}     # braintum ...\n"
            f"    export RAY_AUTH_MODE=token RAY_ADDRESS={made.dashboard}   # ray job submit ...\n",
            file=sys.stderr,
        )
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


@cluster.command("doctor")
def doctor(
    address: Annotated[
        str | None,
        typer.Argument(callback=given, help="HOST:6379 of its head; else what RAY_ADDRESS or `ray start` says."),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(callback=given, help="Folder or URL of results, to be tried from every node.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Looks for what is wrong with a cluster: each problem in one line with its remedy. Exit code 1 if there is any.

    Versions, GPUs, storage, network, clocks, disks of every node; who may come in.
    """
    from braintum.cluster.doctor import check
    from braintum.connect import connect
    from braintum.console import print_checked
    from braintum.storage import resolve

    if address is not None:
        os.environ["RAY_ADDRESS"] = address
    with stdout_for(as_json):
        connect(lambda text: print(text, file=sys.stderr))
        checked = check(None if storage is None else resolve(storage)).to_dict()
    show(checked, as_json, print_checked)
    if checked["problems"]:
        raise typer.Exit(1)
