"""Options of `braintumnet` (the BrainTumNet paper, sections 2.2 and 5; no code was published)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from braintum.models.registry import SegmenterConfig, register

if TYPE_CHECKING:
    from torch import nn

FINEST = 2
"""The stage on whose grid finer maps are cut into patches: four pixels. No grid of patches is finer."""

_NEEDS: dict[str, dict[str, Any]] = {
    "transformer": {"adaptive_mask": True, "heads": 4, "transformer_depth": 2, "window": None},
    "adaptive_mask": {"keep_ratio": 1.0},
    "classify": {"inception": True, "mask_guidance": True},
}
"""Options that do something only where a switch is on, by switch, and what they then are unless told."""


@register("braintumnet")
class BrainTumNetConfig(SegmenterConfig):
    """Convolutions beside adaptive masked transformers, and a classifier on the segmented region.

    The paper gives the parts and no number: none for channels, stages, heads, depth, patches or window. Chosen here:
    U-Net-like stages that double their channels (22.5 million weights; the U-Net has 31), and in the decoder patches of
    4 pixels, so that attention over all of them is where much of the time goes, and `keep_ratio` saves it. The
    encoder's branch has patches as wide as a cell of the last but one stage, 8 pixels at a depth of 4.

    The six switches `transformer`, `adaptive_mask`, `cbam`, `pyramid`, `inception`, `mask_guidance` each take one idea
    away. Without `classify` it is the segmenter alone, as in the two-stage variant that section 3 compares with.
    """

    SMALL: ClassVar[dict[str, Any]] = {"width": 8, "depth": 3}
    VARIANTS: ClassVar[tuple[dict[str, Any], ...]] = ({"keep_ratio": 0.25}, {"window": 3})

    name: str = "braintumnet"
    classify: bool = Field(True, description="the classifier T-InceptionNet; false leaves the segmenter")
    width: int = Field(40, ge=4, description="channels of the first stage; they double at every downsampling")
    depth: int = Field(4, ge=3, le=6, description="downsamplings")
    norm: Literal["batch", "instance", "group"] = Field(
        "batch", description="of the segmenter's convolutions; T-InceptionNet's are always batch"
    )
    transformer: bool = Field(True, description="BT blocks everywhere; false leaves convolutions")
    adaptive_mask: bool | None = Field(
        None, description="masks scale attention over all patches, true if none; needs transformer"
    )
    keep_ratio: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of patches that the segmenter's attention over all keeps, 1 if none; needs adaptive_mask",
    )
    heads: int | None = Field(None, ge=1, description="of every attention, 4 if none; needs transformer")
    transformer_depth: int | None = Field(
        None, ge=1, description="BT blocks of the encoder's branch, 2 if none; needs transformer"
    )
    window: int | None = Field(
        None, ge=1, description="patches along a window, 1/32 of the slice, or 4, if none; needs transformer"
    )
    cbam: bool = Field(True, description="CBAM on every skip")
    pyramid: bool = Field(True, description="masks from all of the decoder's scales, not from the finest only")
    inception: bool | None = Field(
        None, description="T-InceptionNet, else a linear layer on pooled features; true if none; needs classify"
    )
    mask_guidance: bool | None = Field(
        None, description="the predicted mask weighs the classifier's features, true if none; needs classify"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        """What is not given becomes its default where it has an effect, and is refused where it has none."""
        if not isinstance(value, Mapping):
            return value
        filled = dict(value)
        for switch, options in _NEEDS.items():
            off = filled.get(switch, cls.model_fields[switch].default) in (False, None)
            for field, default in options.items():
                if filled.get(field) is None:
                    filled[field] = None if off else default
                elif off:
                    raise ValueError(f"{field} has no effect without {switch}. Leave it out")
        return filled

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.heads is not None and 4 * self.width % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide {4 * self.width}, the channels of a patch (4 × width)")
        return self

    def for_size(self, side: int) -> Self:
        """Raises ValueError for a window larger than the finest grid of patches: it would be cut down to that."""
        patches = side >> FINEST
        if self.window is not None and self.window > patches:
            raise ValueError(
                f"window: {self.window} is more than all patches along {side} pixels. Give {patches} or less"
            )
        if not self.transformer or self.window is not None:
            return self
        return self.model_copy(update={"window": max(4, side // 32)})

    @property
    def divisor(self) -> int:
        return 1 << self.depth

    @property
    def smallest(self) -> int:
        """A deepest stage of one pixel is zero after instance norm, and after batch norm in a batch of one slice."""
        return 2 * self.divisor

    def build(self, in_channels: int, num_classes: int, num_masks: int) -> nn.Module:
        from braintum.models.networks.braintumnet import BrainTumNet

        return BrainTumNet(self, in_channels, num_classes, num_masks)
