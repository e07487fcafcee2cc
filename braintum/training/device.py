"""Which device and precision a training uses."""

from __future__ import annotations

import torch

from braintum.config import ConfigError, Training


def pick_device(training: Training) -> torch.device:
    """`auto` takes the GPU that the process sees, else the CPU. Raises ConfigError for a GPU that is not there."""
    if training.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device: 'cuda': no GPU is visible here; use auto or cpu")
    name = "cpu" if training.device == "cpu" or not torch.cuda.is_available() else "cuda"
    return torch.device(name)


def autocast_dtype(training: Training, device: torch.device) -> torch.dtype | None:
    """bfloat16 or None (float32). `auto` takes bfloat16 on GPUs that have it and on CPUs with AMX or AVX512-BF16.

    On other CPUs bfloat16 is emulated and slower than float32.
    """
    if training.precision == "float32":
        return None
    if training.precision == "bfloat16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    gains = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if gains else None
