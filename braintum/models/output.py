"""What every network returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """Logits only. B batch, K mask channels, H W, N classes.

    `aux`: further (weight, Output) pairs for deep supervision and auxiliary heads, empty in eval mode.
    """

    mask_logits_BKHW: Tensor | None
    class_logits_BN: Tensor | None
    aux: tuple[tuple[float, Output], ...] = ()
