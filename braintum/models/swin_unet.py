"""Options of `swin_unet`: Swin-Unet, a U-shaped network of Swin blocks alone (Cao et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from braintum.models.registry import SegmenterConfig, register

if TYPE_CHECKING:
    from torch import nn

PATCH = 4


@register("swin_unet")
class SwinUNetConfig(SegmenterConfig):
    """A U-Net of shifted-window transformers: patch merging down, patch expanding up.

    Patches of 4×4 pixels; width and heads double, and the map halves, from stage to stage of the encoder.

    The defaults are the published Swin-T (section 3 and its code): one `depth` for all stages, the decoder mirroring
    the encoder. Slices of 224 px give it the published windows.
    """

    SMALL: ClassVar[dict[str, Any]] = {"width": 24, "stages": 3, "heads": 3, "window": 4, "drop_path": 0.0}

    name: str = "swin_unet"
    width: int = Field(96, ge=1, description="features of a token in the first stage")
    stages: int = Field(4, ge=2, le=6, description="stages of the encoder; 4 gives 96 to 768 features at width 96")
    depth: int = Field(2, ge=1, description="blocks of a stage; every second one has shifted windows")
    heads: int = Field(3, ge=1, description="attention heads of the first stage; must divide width")
    window: int | None = Field(None, ge=2, description="side of a window in tokens; follows from the slice if none")
    mlp_ratio: float = Field(4.0, ge=1, description="hidden units of a block's MLP, as a multiple of its width")
    drop_path: float = Field(0.2, ge=0, lt=1, description="stochastic depth: the deepest block's share of skips")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}. Change one of them")
        return self

    @property
    def divisor(self) -> int:
        return PATCH << (self.stages - 1)

    @property
    def smallest(self) -> int:
        """In a deepest map of one token, attention chooses nothing and its position bias would never learn."""
        return 2 * self.divisor

    def for_size(self, side: int) -> Self:
        """The published window of 7 where it divides the maps (224, 448 px).

        Else the largest of 8 to 4 that divides the first stage's map, which holds most tokens (8 at 128, 256, 320 or
        512 px), and 7 where none does. Maps that a window does not divide are padded, and the padding masked.
        """
        if self.window is not None:
            return self
        window = next((w for w in (7, 8, 6, 5, 4) if side // PATCH % w == 0), 7)
        return self.model_copy(update={"window": window})

    def build(self, in_channels: int, num_classes: int, num_masks: int) -> nn.Module:
        from braintum.models.networks.swin_unet import SwinUNet

        return SwinUNet(self, in_channels, num_classes, num_masks)
