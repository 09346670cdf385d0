"""What CUDA devices this machine has, asked of the driver itself: loading torch for it takes seconds."""

from __future__ import annotations

import ctypes


def _driver() -> ctypes.CDLL | None:
    """The CUDA driver, ready to be asked; None where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def cuda_device_count() -> int:
    """CUDA devices that the driver shows to this process; 0 without a driver."""
    driver, count = _driver(), ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def cuda_memory_gb() -> list[float]:
    """Memory of each CUDA device that the driver shows to this process, in 10^9 bytes."""
    driver, sizes = _driver(), []
    for index in range(cuda_device_count()):
        device, size = ctypes.c_int(0), ctypes.c_size_t(0)
        if (
            driver is not None
            and driver.cuDeviceGet(ctypes.byref(device), index) == 0
            and driver.cuDeviceTotalMem_v2(ctypes.byref(size), device) == 0
        ):
            sizes.append(size.value / 1e9)
    return sizes


def resolve(device: str) -> str:
    """`auto` as the device that training would use on this machine; any other name as it is."""
    if device != "auto":
        return device
    return "cuda" if cuda_device_count() else "cpu"
