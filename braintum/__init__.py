"""braintum: multi-task brain-tumour models on MRI slices, searched and cross-validated on Ray."""

from braintum import models as models  # registers the architectures that ship with braintum (no torch)

__version__ = "0.1.0"
