"""The energy that an NVIDIA GPU has taken, by its driver's management library (NVML), which comes with the driver."""

from __future__ import annotations

import ctypes

import torch

LIBRARY = "libnvidia-ml.so.1"


class EnergyUnknown(RuntimeError):
    """A device that does not report its energy, and why."""


class EnergyCounter:
    """`EnergyCounter(device).joules()`: since the driver was loaded, of the whole GPU. Raises EnergyUnknown.

    GPUs from Volta on report it; partitions of one (MIG) do not.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise EnergyUnknown(f"a {device.type.upper()} does not report it")
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise EnergyUnknown(f"NVML cannot be loaded: {error}") from None
        self._ask("nvmlInit_v2")
        self._handle = ctypes.c_void_p()
        # By its UUID: CUDA_VISIBLE_DEVICES renumbers GPUs, and NVML does not look at it.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        self._ask("nvmlDeviceGetHandleByUUID", ctypes.c_char_p(uuid), ctypes.byref(self._handle))
        self.joules()

    def joules(self) -> float:
        millijoules = ctypes.c_ulonglong()
        self._ask("nvmlDeviceGetTotalEnergyConsumption", self._handle, ctypes.byref(millijoules))
        return millijoules.value / 1000

    def _ask(self, function: str, *arguments: object) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            self._library.nvmlErrorString.restype = ctypes.c_char_p
            raise EnergyUnknown(f"{function}: {self._library.nvmlErrorString(code).decode()}")
