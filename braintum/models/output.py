"""What every network returns, and what one offers whose pre-trained weights have other names or sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor
from torch.utils import _pytree


class Output(NamedTuple):
    """Logits only. B batch, K mask channels, H W, N classes.

    `aux`: further (weight, Output) pairs for deep supervision and auxiliary heads, empty in eval mode.
    """

    mask_logits_BKHW: Tensor | None
    class_logits_BN: Tensor | None
    aux: tuple[tuple[float, Output], ...] = ()


# Without it `torch.export.save` refuses a network; whoever loads one has to have imported this module.
_pytree._register_namedtuple(Output, serialized_type_name="braintum.models.output.Output")


@runtime_checkable
class Translates(Protocol):
    """A network whose published weights have names of their own (timm's, torchvision's)."""

    def pretrained(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A file's tensors by the names of this network's state dict; names it does not know are left out.

        Nothing is copied into the network. Shapes need not fit: the caller takes those that do, and folds convolutions
        of the image. Values are the file's own tensors or made of them by differentiable operations (cut, joined,
        interpolated), so that the caller can tell which of the file's tensors were used.
        """


@runtime_checkable
class Resizes(Protocol):
    """A network some of whose weights have sizes that follow from the slices'."""

    def resized(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the names of this network's state dict, those of another size of slices at this network's size.

        All others, and names it does not know, as they are. Made by differentiable operations, as in `Translates`.
        """
