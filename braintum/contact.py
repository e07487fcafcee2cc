"""Which servers have answered a command: an address that never did may be mistyped, and is not waited for long.

Imports nothing that takes time, so that the command line can begin with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_met: set[str] | None = None
"""Servers that have answered in this `first_contact`; None outside of one."""


@contextmanager
def first_contact() -> Iterator[None]:
    """In the body every server is a stranger until it has answered once; `braintum.storage` does not wait long for one.

    It is for the process of a command. Its workers begin when it has had its answers, and they wait, as do those who
    use braintum as a library.
    """
    global _met
    before, _met = _met, set()
    try:
        yield
    finally:
        _met = before


def is_stranger(server: str) -> bool:
    return _met is not None and server not in _met


def meet(server: str) -> None:
    """Remembers that it has answered."""
    if _met is not None:
        _met.add(server)
