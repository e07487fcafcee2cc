"""Weights that a training starts from (`model.init_from`): of a checkpoint of braintum's, or of any safetensors file.

The names in a checkpoint are ours. Those in another file are the network's to translate (`Translates`); where it does
not, or nothing comes of it, they are tried as they stand, then below `encoder.`. What follows from the slice's size is
the network's to resize (`Resizes`), also in a checkpoint. Only safetensors files are read: a pickled file can run code
when it is opened. Of their tensors those of floating point are taken, as float32.

C channels of the image, F of the file's images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from braintum import storage
from braintum.models.output import Resizes, Translates
from braintum.models.registry import ModelConfig
from braintum.settings import ConfigError
from braintum.training.checkpoint import read_metadata
from braintum.training.provenance import UNKNOWN, Provenance, provenance_of

_DAMAGE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What reading, translating or resizing odd tensors raises."""
_DAMAGED = "the file may be damaged, or of another kind of network; use another one"
_SIZES = ("layers", "stages", "blocks", "depth", "width", "growth")
"""Options that say how deep and wide a network is, of those that have them."""


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

    `config` is what the network was built from, for `in_channels`. A tensor fits where name and shape are the
    network's. A convolution of the image also fits with another number of input channels: it is folded (see `folded`).
    Other weights of what reads the image, and of heads, are left fresh where their shape is another.

    Raises ConfigError for a file that cannot be read, is no safetensors file, has values that are not finite, has a
    tensor of another shape elsewhere, or nothing for a parameter of two or more axes: those of one fit by chance.
    """
    assert config.init_from is not None
    content = _read(config.init_from)
    weights, trained_on = _load(content, config.init_from)
    own, parameters = network.state_dict(), dict(network.named_parameters())
    matrices = {name for name, value in parameters.items() if value.dim() > 1}
    for named in _ways(network, weights, config, ours=trained_on is not None):
        taken, misfits = _fitting(named, own, config, in_channels)
        if not matrices.isdisjoint([*taken, *misfits]):
            break
    else:
        raise ConfigError(
            f"model.init_from: {config.init_from}: nothing in it fits {config.name}, which has {_examples(own)}; "
            f"it has {_examples(weights)}"
        )
    if misfits:
        name = misfits[0]
        options = [f"model.{option}" for option in _SIZES if option in type(config).model_fields]
        raise ConfigError(
            f"model.init_from: {config.init_from}: {name} is {list(named[name].shape)} in it and "
            f"{list(own[name].shape)} in {config.name}; it looks like another depth or width; "
            + (f"set {', '.join(options)} to what it has, or use another file" if options else "use another file")
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


def _ways(
    network: nn.Module, weights: Mapping[str, Tensor], config: ModelConfig, ours: bool
) -> Iterator[Mapping[str, Tensor]]:
    """The file's tensors by what may be the network's names, likeliest first; `ours`: a checkpoint of braintum's."""
    try:
        if isinstance(network, Translates) and not ours:
            yield network.pretrained(weights)
        for prefix in ("", "encoder."):
            named = {prefix + name: value for name, value in weights.items()}
            yield network.resized(named) if isinstance(network, Resizes) else named
    except _DAMAGE as error:
        raise ConfigError(
            f"model.init_from: {config.init_from}: {config.name} cannot translate it ({_reason(error)}); {_DAMAGED}"
        ) from error


def _fitting(
    named: Mapping[str, Tensor], own: Mapping[str, Tensor], config: ModelConfig, in_channels: int
) -> tuple[dict[str, Tensor], list[str]]:
    """Those tensors that the network has a place for, with its shapes, and the names of those whose shape is another.

    Without those that may have another shape: of what reads the image, and of heads.
    """
    found = {name: named[name] for name, value in own.items() if name in named and named[name].shape == value.shape}
    others = [name for name in own if name in named and name not in found]
    readers, heads = _flexible(config, in_channels) if others else (set(), set())
    misfits = []
    for name in others:
        shape, target = named[name].shape, own[name].shape
        if _module(name) in readers:
            same_but_channels = len(shape) == 4 and (shape[0], *shape[2:]) == (target[0], *target[2:])
            if same_but_channels and shape[1] and target[1] == in_channels:
                found[name] = folded(named[name], in_channels)
        elif _part(name) not in heads:
            misfits.append(name)
    return found, misfits


def _flexible(config: ModelConfig, in_channels: int) -> tuple[set[str], set[str]]:
    """The modules that read the image, and the parts that are heads or have them.

    They are those whose shapes are others in a network for another number of channels, or of classes and masks.
    """

    def shapes(channels: int, outputs: int) -> set[tuple[str, torch.Size]]:
        with torch.device("meta"):
            state = config.build(channels, outputs, outputs).state_dict()
        return {(name, value.shape) for name, value in state.items()}

    usual = shapes(in_channels, 2)
    readers = {_module(name) for name, _ in usual ^ shapes(in_channels + 1, 2)}
    heads = {_part(name) for name, _ in usual ^ shapes(in_channels, 3)}
    return readers, heads


def _module(name: str) -> str:
    """The module that a tensor of the state dict belongs to."""
    return name.rpartition(".")[0]


def _part(name: str) -> str:
    """The part of the network, one of its direct children, that a tensor of the state dict belongs to."""
    return name.partition(".")[0]


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
