"""DenseNet (Huang et al. 2017), on MONAI's. B batch, C channels, H W, N classes."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch.nn.functional as F
from monai.networks.nets import densenet as monai
from torch import Tensor, nn

from braintum.models.densenet import DenseNetConfig
from braintum.models.output import Output


class DenseNet(nn.Module):
    """The 2D network for ImageNet.

    The dropout inside dense layers, which the paper has where it trains without augmentation, is left out.
    """

    def __init__(self, config: DenseNetConfig, in_channels: int, num_classes: int) -> None:
        super().__init__()
        network = monai.DenseNet(2, in_channels, num_classes, config.width, config.growth, config.blocks)
        self.features = network.features
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = network.get_submodule("class_layers.out")

    def forward(self, image_BCHW: Tensor) -> Output:
        features_BCHW = F.relu(self.features(image_BCHW), inplace=True)
        return Output(None, self.classifier(self.dropout(features_BCHW.mean((2, 3)))))

    def pretrained(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights under the names of torchvision and timm, under ours.

        Theirs are `features.denseblock1.denselayer1.norm1.weight`, in torchvision's files `norm.1.weight`; MONAI puts
        `layers` between.
        """
        own = self.state_dict()
        renamed = {
            re.sub(r"(denselayer\d+)\.(norm|conv)\.?([12])\.", r"\1.layers.\2\3.", key): value
            for key, value in weights.items()
        }
        return {key: value for key, value in renamed.items() if key in own}
