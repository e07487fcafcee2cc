"""Options of `transunet`: a ResNet, a transformer on its coarsest map, and a decoder with skips (Chen et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from braintum.models.registry import SegmenterConfig, register

if TYPE_CHECKING:
    from torch import nn


@register("transunet")
class TransUNetConfig(SegmenterConfig):
    """A vision transformer on a ResNet's features, and a cascaded upsampler with skips.

    R50-ViT-B/16 unless told ("TransUNet: Transformers Make Strong Encoders", section 3 and 4.2).
    """

    SMALL: ClassVar[dict[str, Any]] = {
        "width": 8,
        "blocks": [1, 1, 1],
        "hidden": 32,
        "depth": 2,
        "heads": 2,
        "decoder": [64, 32, 16, 16, 8],
    }

    name: str = "transunet"
    width: int = Field(64, ge=1, description="channels of the ResNet's first layer; its stages have 4, 8, 16 times it")
    blocks: tuple[PositiveInt, PositiveInt, PositiveInt] = Field((3, 4, 9), description="of the ResNet's stages")
    grid: int | None = Field(
        None,
        ge=1,
        description="position embeddings a side; if none, one for each 16 pixels of the slices; interpolated elsewhere",
    )
    hidden: int = Field(768, ge=1, description="width of the transformer's tokens")
    depth: int = Field(12, ge=1, description="layers of the transformer")
    heads: int = Field(12, ge=1, description="of each attention; must divide hidden")
    mlp_ratio: int = Field(4, ge=1, description="inner units of the transformer's MLPs, as a multiple of hidden")
    transformer_dropout: float = Field(0.1, ge=0, lt=1, description="of the first tokens, and in the MLPs")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="of attention weights, and of attention's output")
    decoder: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt] = Field(
        (512, 256, 128, 64, 16), description="channels of the decoder at 1/16, 1/8, 1/4, 1/2 and all of the side"
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"heads must divide hidden, and {self.heads} does not divide {self.hidden}")
        return self

    def for_size(self, side: int) -> Self:
        return self if self.grid is not None else self.model_copy(update={"grid": side // self.divisor})

    @property
    def divisor(self) -> int:
        return 16

    @property
    def smallest(self) -> int:
        """At 16 the decoder begins at one pixel, which is zero after batch norm in a batch of one slice."""
        return 32

    def build(self, in_channels: int, num_classes: int, num_masks: int) -> nn.Module:
        from braintum.models.networks.transunet import TransUNet

        return TransUNet(self, in_channels, num_classes, num_masks)
