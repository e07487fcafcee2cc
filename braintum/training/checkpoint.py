"""Checkpoints: `model.safetensors` (weights, and in its metadata all that prediction needs) and `state.pt` (resuming).

Neither is ever unpickled: safetensors holds none, and `state.pt` is read with `weights_only=True`.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from braintum import storage
from braintum.config import Experiment
from braintum.training.provenance import UNKNOWN, Provenance, provenance_of

MODEL = "model.safetensors"
STATE = "state.pt"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, with its place and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A network with its weights, ready to predict, and what it was made for."""

    model: nn.Module
    experiment: Experiment
    in_channels: int
    classes: tuple[str, ...]
    masks: tuple[str, ...]
    trained_on: Provenance = UNKNOWN


def save_model(
    url: str,
    weights: dict[str, Tensor],
    experiment: Experiment,
    *,
    in_channels: int,
    classes: tuple[str, ...],
    masks: tuple[str, ...],
    trained_on: Provenance = UNKNOWN,
) -> None:
    """Writes `model.safetensors` at `url`; the same weights and settings give the same bytes."""
    about = {
        "experiment": experiment.to_dict(),
        "in_channels": in_channels,
        "classes": list(classes),
        "masks": list(masks),
        "trained_on": [past and asdict(past) for past in trained_on],
    }
    # One metadata key: safetensors writes several in no fixed order, and the file's digest would change.
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    content = safetensors.torch.save(tensors, metadata={"braintum": json.dumps(about, sort_keys=True)})
    storage.write_bytes(url, content)


def load_model(url: str) -> Checkpoint:
    """Reads `model.safetensors` at `url`, in eval mode on the CPU. Raises CheckpointError."""
    content = _read(url)
    try:
        weights = safetensors.torch.load(content)
        about = json.loads(read_metadata(content)["braintum"])
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{url}: not a checkpoint of braintum ({error})") from None
    experiment = Experiment.from_dict(about["experiment"], url)
    model = experiment.model.build(about["in_channels"], len(about["classes"]), len(about["masks"]))
    model.load_state_dict(weights)
    return Checkpoint(
        model.eval(),
        experiment,
        about["in_channels"],
        tuple(about["classes"]),
        tuple(about["masks"]),
        provenance_of(about),
    )


def read_metadata(content: bytes) -> dict[str, str]:
    """What a safetensors file says of itself; a checkpoint of ours says `braintum`."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata: dict[str, str] = header.get("__metadata__") or {}
    return metadata


def save_state(url: str, state: dict[str, Any]) -> None:
    """Writes `state.pt` at `url` atomically: whoever dies while writing leaves the previous one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    storage.write_bytes(url, buffer.getvalue())


def load_state(url: str) -> dict[str, Any] | None:
    """Reads `state.pt` at `url`, on the CPU; None where there is none. Raises CheckpointError."""
    if not storage.exists(url):
        return None
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(_read(url)), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not one of its own
        raise CheckpointError(f"{url}: not a readable training state ({' '.join(str(error).split())[:120]})") from error
    return state


def _read(url: str) -> bytes:
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        raise CheckpointError(f"{url}: no such checkpoint") from None
