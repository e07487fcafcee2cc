"""Which device and precision a training uses, and what machine that is on."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from pathlib import Path

import torch

from braintum.parts import Training
from braintum.settings import ConfigError


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


def memory_format(device: torch.device, autocast: torch.dtype | None) -> torch.memory_format:
    """channels_last where it is faster: on GPUs and in bfloat16. In float32 on a CPU contiguous is (CHANGELOG)."""
    return torch.contiguous_format if device.type == "cpu" and autocast is None else torch.channels_last


def keep_freed_memory() -> None:
    """Makes this process keep what tensors free, for the next ones, instead of asking the kernel for it every step.

    For worker processes of our own. A sixth of the time of a CPU training went there (CHANGELOG); glibc only.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def processor() -> str:
    """What the processor calls itself."""
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - fixed
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
