"""Architectures. One file here says what can be asked of each (no torch); `networks/` holds the network of each.

Adding one: write `models/NAME.py` and `models/networks/NAME.py`, and name it here. An installed package adds its own
by an entry point of the group `braintum.models` that names the module with its `@register`.
"""

from braintum.models import braintumnet as braintumnet
from braintum.models import classifier as classifier
from braintum.models import deeplabv3plus as deeplabv3plus
from braintum.models import densenet as densenet
from braintum.models import googlenet as googlenet
from braintum.models import medformer as medformer
from braintum.models import nnunet as nnunet
from braintum.models import resnet as resnet
from braintum.models import swin_unet as swin_unet
from braintum.models import transunet as transunet
from braintum.models import unet as unet
from braintum.models.registry import load_entry_points

load_entry_points()
