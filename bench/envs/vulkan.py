"""Whether this machine has a Vulkan device that SAPIEN, ManiSkill's engine, can draw with."""

from __future__ import annotations

import ctypes
from functools import cache

_LIBRARY = "libvulkan.so.1"
_SUCCESS = 0
_INSTANCE_CREATE_INFO = 1
_DEVICE_TYPES = {1: "integrated GPU", 2: "discrete GPU", 3: "virtual GPU"}
"""VkPhysicalDeviceType. The others (4 is a software renderer, which Mesa and browsers bring along) do not do."""


class _InstanceCreateInfo(ctypes.Structure):
    """VkInstanceCreateInfo."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("layer_count", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("extension_count", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    )


class _DeviceProperties(ctypes.Structure):
    """VkPhysicalDeviceProperties: its first fields, then room for the rest, which is 824 bytes in all."""

    _fields_ = (
        ("api_version", ctypes.c_uint32),
        ("driver_version", ctypes.c_uint32),
        ("vendor", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
        ("type", ctypes.c_int),
        ("name", ctypes.c_char * 256),
        ("rest", ctypes.c_uint8 * 2048),
    )


@cache
def device() -> str | None:
    """The first GPU that Vulkan knows, by name; None where it knows none, or is not installed."""
    try:
        vulkan = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    info, instance = _InstanceCreateInfo(type=_INSTANCE_CREATE_INFO), ctypes.c_void_p()
    if vulkan.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance)) != _SUCCESS:
        return None  # no driver
    try:
        return next(iter(_gpus(vulkan, instance)), None)
    finally:
        vulkan.vkDestroyInstance(instance, None)


def needed_for(task: str) -> str:
    """The one line for pictures of a task where there is no device."""
    return (
        f"pictures of {task} need a GPU that Vulkan finds, and there is none here: leave out videos, or mend the "
        "driver (vulkaninfo --summary lists devices; in a container NVIDIA_DRIVER_CAPABILITIES=all)"
    )


def _gpus(vulkan: ctypes.CDLL, instance: ctypes.c_void_p) -> list[str]:
    count = ctypes.c_uint32()
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    devices = (ctypes.c_void_p * count.value)()
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)
    found = []
    for handle in devices[: count.value]:
        properties = _DeviceProperties()
        vulkan.vkGetPhysicalDeviceProperties(ctypes.c_void_p(handle), ctypes.byref(properties))
        if properties.type in _DEVICE_TYPES:
            found.append(f"{properties.name.decode(errors='replace')} ({_DEVICE_TYPES[properties.type]})")
    return found
