"""SAPIEN on a machine without the system's graphics libraries, where only states are simulated.

SAPIEN 2 is linked against libraries for drawing, of which it calls nothing before a renderer is made: they only have to
exist. The dynamic loader takes a library that is loaded already for one that it looks for by that name, so an empty one
stands in for each that is missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
import tempfile
from functools import cache
from importlib import import_module

LIBRARIES = ("libvulkan.so.1", "libGL.so.1", "libX11.so.6")
"""What SAPIEN 2.2 is linked against beyond the C and C++ libraries and its own wheel."""

_DT_NULL, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = 0, 4, 5, 6, 10, 11, 14
_PT_LOAD, _PT_DYNAMIC, _PT_GNU_STACK = 1, 2, 0x6474E551
_READ_WRITE = 6
_ET_DYN, _EM_X86_64 = 3, 62
_HEADER, _SEGMENT, _SYMBOL, _PAGE = 64, 56, 24, 4096


@cache
def import_sapien() -> None:
    """Import `sapien.core`, with placeholders for libraries that are missing.

    Raises:
        ImportError: SAPIEN is not installed or broken.
    """
    missing = [name for name in LIBRARIES if not _is_installed(name)]
    flags = sys.getdlopenflags()
    if missing:
        sys.setdlopenflags(os.RTLD_LAZY)  # functions that are missing are then looked for when they are called
    try:
        for name in missing:
            _load(name)
        import_module("sapien.core")
    finally:
        sys.setdlopenflags(flags)


def _is_installed(name: str) -> bool:
    with contextlib.suppress(OSError):
        ctypes.CDLL(name)
        return True
    return False


def _load(name: str) -> None:
    with tempfile.NamedTemporaryFile(prefix=f"{name}.") as file:  # each under a path of its own, or it is the last one
        file.write(image(name))
        file.flush()
        ctypes.CDLL(file.name, mode=os.RTLD_LAZY)


def image(name: str) -> bytes:
    """A shared library for x86-64 Linux (ELF-64) with that DT_SONAME and no symbol (System V ABI, chapters 4 and 5)."""
    strings = b"\0" + name.encode() + b"\0"
    hashes = struct.pack("<4I", 1, 1, 0, 0)  # one bucket and one chain: the undefined symbol
    symbols = bytes(_SYMBOL)
    hashes_at = _HEADER + 3 * _SEGMENT
    symbols_at = hashes_at + len(hashes)
    strings_at = symbols_at + len(symbols)
    dynamic_at = -(-(strings_at + len(strings)) // 8) * 8
    entries = (
        *((_DT_SONAME, 1), (_DT_HASH, hashes_at), (_DT_SYMTAB, symbols_at), (_DT_STRTAB, strings_at)),
        *((_DT_STRSZ, len(strings)), (_DT_SYMENT, _SYMBOL), (_DT_NULL, 0)),
    )
    dynamic = b"".join(struct.pack("<2Q", *entry) for entry in entries)
    size = dynamic_at + len(dynamic)
    identity = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)  # 64 bits, little-endian
    header = struct.pack(
        "<16s2HI3QI6H", identity, _ET_DYN, _EM_X86_64, 1, 0, _HEADER, 0, 0, _HEADER, _SEGMENT, 3, 0, 0, 0
    )
    segments = b"".join(
        struct.pack("<2I6Q", kind, _READ_WRITE, start, start, start, length, length, align)
        for kind, start, length, align in (
            (_PT_LOAD, 0, size, _PAGE),
            (_PT_DYNAMIC, dynamic_at, len(dynamic), 8),
            (_PT_GNU_STACK, 0, 0, 16),  # without it the loader asks for an executable stack
        )
    )
    start = header + segments + hashes + symbols + strings
    return start + bytes(dynamic_at - len(start)) + dynamic
