"""Whether this machine has a CUDA device, asked of the driver itself: loading torch for it takes seconds."""

from __future__ import annotations

import ctypes


def cuda_device_count() -> int:
    """CUDA devices that the driver shows to this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def resolve(device: str) -> str:
    """`auto` as the device that training would use on this machine; any other name as it is."""
    if device != "auto":
        return device
    return "cuda" if cuda_device_count() else "cpu"
