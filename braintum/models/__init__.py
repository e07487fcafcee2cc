"""Architectures. One file here says what can be asked of each (no torch); `networks/` holds the network of each.

Adding one: write `models/NAME.py` and `models/networks/NAME.py`, and name it here.
"""

from braintum.models import classifier as classifier
from braintum.models import unet as unet
