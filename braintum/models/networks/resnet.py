"""ResNet (He et al. 2016), on MONAI's. B batch, C channels, H W, N classes, D features."""

from __future__ import annotations

from collections.abc import Mapping

from monai.networks.nets import resnet as monai
from torch import Tensor, nn

from braintum.models.output import Output
from braintum.models.resnet import ResNetConfig

_BLOCKS = {18: ("basic", [2, 2, 2, 2]), 34: ("basic", [3, 4, 6, 3]), 50: ("bottleneck", [3, 4, 6, 3])}


class ResNet(nn.Module):
    """The 2D network for ImageNet: a 7×7 stem of stride 2, max-pooling, projections without bias where shapes change.

    As everywhere today the 3×3 convolution of a bottleneck has the stride (the paper: the 1×1 before it): the same
    weights, and what public weights were trained with.
    """

    def __init__(self, config: ResNetConfig, in_channels: int, num_classes: int) -> None:
        super().__init__()
        block, counts = _BLOCKS[config.layers]
        self.encoder = monai.ResNet(
            block,
            counts,
            [config.width * 2**stage for stage in range(4)],
            spatial_dims=2,
            n_input_channels=in_channels,
            conv1_t_stride=2,
            no_max_pool=not config.max_pool,
            feed_forward=False,
            bias_downsample=False,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(self.encoder.in_planes, num_classes)

    def forward(self, image_BCHW: Tensor) -> Output:
        features_BD = self.encoder(image_BCHW)
        return Output(None, self.fc(self.dropout(features_BD)))

    def pretrained(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights under the names of torchvision and timm (`layer1.0.conv1.weight`, `fc.weight`), under ours."""
        own = self.state_dict()
        renamed = {key if key.startswith("fc.") else f"encoder.{key}": value for key, value in weights.items()}
        return {key: value for key, value in renamed.items() if key in own}
