"""Weights that a training starts from (`model.init_from`): of a checkpoint of braintum's, or of any safetensors file.

The names in a checkpoint are ours. Those in another file are the network's to translate (`Translates`); where it does
not, or nothing comes of it, they are tried as they stand, then below `encoder.`. Only safetensors files are read: a
pickled file can run code when it is opened. Of their tensors those of floating point are taken, as float32.

C channels of the image, F of the file's images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from braintum import storage
from braintum.models.output import Translates
from braintum.models.registry import ModelConfig
from braintum.settings import ConfigError
from braintum.training.checkpoint import read_metadata
from braintum.training.provenance import UNKNOWN, Provenance, provenance_of

_DAMAGE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What reading or translating odd tensors raises."""
_DAMAGED = "the file may be damaged, or of another kind of network; use another one"


@dataclass(frozen=True)
class Initialised:
    """What a network took from a file, by name: `taken` of its state dict, `fresh` of its parameters, `unused` of the
    file's tensors. `share`: of the network's weights, how many were taken. Its text is one line for people."""

    url: str
    sha256: str
    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    share: float
    trained_on: Provenance

    def __str__(self) -> str:
        percent = "less than 1" if self.share < 0.01 else int(100 * self.share)
        taken = f"model.init_from: {self.url}: {len(self.taken)} tensors taken, {percent} % of the weights"
        known = "" if None not in self.trained_on else "; what it was trained on is not known"
        return f"{taken}; left fresh: {_some(self.fresh)}; not used: {_some(self.unused)}{known}"


def initialise(network: nn.Module, config: ModelConfig, in_channels: int) -> Initialised:
    """Copies what fits of the file at `config.init_from` into the network, which may be on the meta device.

    A tensor fits where name and shape are the network's. The first convolution's also fits with another number of
    input channels: it is folded (see `folded`). Raises ConfigError for a file that cannot be read, is no safetensors
    file, has values that are not finite, or of which no parameter fits.
    """
    assert config.init_from is not None
    content = _read(config.init_from)
    weights, trained_on = _load(content, config.init_from)
    ways = [weights, {f"encoder.{name}": value for name, value in weights.items()}]
    if isinstance(network, Translates) and trained_on is None:
        try:
            ways.insert(0, network.pretrained(weights))
        except _DAMAGE as error:
            raise ConfigError(
                f"model.init_from: {config.init_from}: {config.name} cannot translate it ({_reason(error)}); {_DAMAGED}"
            ) from error
    own, parameters = network.state_dict(), dict(network.named_parameters())
    first = _first_convolution(network, in_channels)
    fits = (_fitting(named, own, first) for named in ways)
    taken = next((fit for fit in fits if fit.keys() & parameters.keys()), None)
    if taken is None:
        raise ConfigError(
            f"model.init_from: {config.init_from}: nothing in it fits {config.name}, which has {_examples(own)}; "
            f"it has {_examples(weights)}"
        )
    with torch.no_grad():
        for name, value in taken.items():
            own[name].copy_(value)
    used = _used(weights, list(taken.values()))
    sizes = {name: value.numel() for name, value in parameters.items()}
    return Initialised(
        config.init_from,
        hashlib.sha256(content).hexdigest(),
        tuple(name for name in own if name in taken),
        tuple(name for name in parameters if name not in taken),
        tuple(sorted(weights.keys() - used)),
        sum(sizes[name] for name in sizes.keys() & taken.keys()) / sum(sizes.values()),
        UNKNOWN if trained_on is None else trained_on,
    )


def folded(weight_OFHW: Tensor, in_channels: int) -> Tensor:
    """A convolution's weights for images of another number of channels.

    One channel: summed, so that a grey image gives what it gave as F equal channels. Several: taken in turn and scaled
    by F / C, which keeps the size of the activations (as timm does).
    """
    if in_channels == 1:
        return weight_OFHW.sum(1, keepdim=True)
    channels = weight_OFHW.shape[1]
    turns = -(-in_channels // channels)
    return weight_OFHW.repeat(1, turns, 1, 1)[:, :in_channels] * (channels / in_channels)


def _read(url: str) -> bytes:
    try:
        return storage.read_bytes(url)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"model.init_from: {url}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"model.init_from: {url}: a folder; give a .safetensors file in it") from None
    except (storage.StorageError, PermissionError) as error:
        raise ConfigError(f"model.init_from: {url}: cannot be read: {error}") from None


def _load(content: bytes, url: str) -> tuple[dict[str, Tensor], Provenance | None]:
    """A file's tensors of floating point, and what a checkpoint of braintum's was trained on; None for another file.

    Whatever a translation makes of the tensors, what is taken leads back to them by its gradient.
    """
    try:
        loaded = sorted(safetensors.torch.load(content).items())  # it gives them in another order every time
        about = read_metadata(content).get("braintum")
        provenance = None if about is None else provenance_of(json.loads(about))
    except safetensors.SafetensorError as error:
        raise ConfigError(
            f"model.init_from: {url}: not a safetensors file ({error}). Others, such as .pt and .pth, are not read: "
            "they can run code when they are opened. Save one that you trust again, by safetensors.torch.save_file"
        ) from None
    except _DAMAGE as error:  # a kind of numbers that torch does not know, metadata of another kind
        raise ConfigError(f"model.init_from: {url}: cannot be read ({_reason(error)}); {_DAMAGED}") from error
    weights = {name: value.float().requires_grad_() for name, value in loaded if value.is_floating_point()}
    broken = next((name for name, value in weights.items() if not value.isfinite().all()), None)
    if broken is not None:
        raise ConfigError(f"model.init_from: {url}: {broken} is NaN or infinite in places; {_DAMAGED}")
    return weights, provenance


def _fitting(named: Mapping[str, Tensor], own: Mapping[str, Tensor], first: str | None) -> dict[str, Tensor]:
    """Those tensors that the network has a place for, with its shapes."""
    found = {}
    for name, value in named.items():
        if name not in own:
            continue
        shape, target = value.shape, own[name].shape
        if shape == target:
            found[name] = value
        elif name == first and len(shape) == 4 and shape[1] and (shape[0], *shape[2:]) == (target[0], *target[2:]):
            found[name] = folded(value, target[1])
    return found


def _first_convolution(network: nn.Module, in_channels: int) -> str | None:
    """The name of the weights of the first convolution, which reads the image."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == in_channels and module.groups == 1:
            return f"{name}.weight"
    return None


def _used(sources: Mapping[str, Tensor], taken: Sequence[Tensor]) -> set[str]:
    """The names of the tensors that those taken are, or were made of."""
    ends = [value.sum() for value in taken if value.requires_grad]
    if not ends:  # a translation that cuts them off
        return set()
    gradients = torch.autograd.grad(ends, list(sources.values()), allow_unused=True)
    return {name for name, gradient in zip(sources, gradients, strict=True) if gradient is not None}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def _examples(tensors: Mapping[str, Tensor]) -> str:
    return _some([f"{name} {list(value.shape)}" for name, value in tensors.items()])
