"""The stand-alone classifier (the U-Net paper, section II-D c). B batch, C channels, H W, N classes."""

from __future__ import annotations

from torch import Tensor, nn

from braintum.models.classifier import ClassifierConfig
from braintum.models.networks.blocks import Encoder, initialise
from braintum.models.output import Output


class Classifier(nn.Module):
    """The U-Net's encoder, global average pooling, dense layers. Sides must be multiples of `config.divisor`."""

    def __init__(self, config: ClassifierConfig, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(in_channels, config.width, config.depth, config.norm)
        self.dense = nn.Sequential(
            nn.Linear(self.encoder.channels[-1], config.hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, num_classes),
        )
        initialise(self)

    def forward(self, image_BCHW: Tensor) -> Output:
        return Output(None, self.dense(self.encoder(image_BCHW)[-1].mean((2, 3))))
