"""Chunks of a source as Ray tasks: as many at a time as there are cores, so that memory is bounded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from braintum.connect import connect, end_tasks
from braintum.data.ingest.bar import say
from braintum.data.ingest.engine import Source, Written, write_chunk
from braintum.data.schema import DataError


def in_order(
    source: Source[Any], chunks: Sequence[Sequence[Any]], out: str, strict: bool
) -> Generator[Written, None, None]:
    """What `write_chunk` gives for every chunk, in order. Raises DataError as that does.

    Tasks run on this node: files of a source, and a local `out`, may be on its disk alone.
    """
    connect(say)
    node = ray.get_runtime_context().get_node_id()
    cores = next(each["Resources"].get("CPU", 0) for each in ray.nodes() if each["NodeID"] == node)
    task = _write.options(
        num_cpus=min(1, cores),  # a head that offers none, so that nothing is trained on it, still reads its own files
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )
    shared, running = ray.put(source), deque[Any]()
    at_once = 2 * (os.cpu_count() or 1)
    waiting = iter(enumerate(chunks))
    try:
        while True:
            while len(running) < at_once and (following := next(waiting, None)) is not None:
                index, chunk = following
                running.append(task.remote(shared, chunk, out, index, strict))
            if not running:
                return
            yield ray.get(running[0])
            running.popleft()
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DataError):  # the user's one line, without the workers' tracebacks around it
            raise error.cause from None
        raise
    finally:
        end_tasks(running)


@ray.remote(max_retries=3)
def _write(source: Source[Any], chunk: Sequence[Any], out: str, index: int, strict: bool) -> Written:
    return write_chunk(source, chunk, out, index, strict)
