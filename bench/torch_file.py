"""Reads a file that `torch.save` wrote without running anything that it names, and without torch.

Such a file is a zip archive of a pickle and of the tensors' bytes. The pickle says which classes and functions to call.
Here every name that plain tensors and TensorDicts need has an inert stand-in, and any other name is refused, so no code
from the file runs and no version of torch or tensordict matters. Tensors become numpy views of the mapped file: nothing
of them is in memory until it is used.
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import UserError

ZIP_MAGIC = b"PK\x03\x04"
LOCAL_HEADER_BYTES = 30

STORAGES: Mapping[str, str] = MappingProxyType(
    {
        "DoubleStorage": "<f8",
        "FloatStorage": "<f4",
        "HalfStorage": "<f2",
        "LongStorage": "<i8",
        "IntStorage": "<i4",
        "ShortStorage": "<i2",
        "CharStorage": "<i1",
        "ByteStorage": "<u1",
        "BoolStorage": "?",
    }
)
"""Classes in torch's namespace that say what a tensor's bytes are."""


class Inert:
    """Stands for an object whose class is not made: it keeps the state that the file gives it."""

    def __init__(self, *arguments: Any) -> None:
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Names(dict[Any, Any]):
    """Stands for a dictionary class, which may also be given a state."""

    def __setstate__(self, state: Any) -> None:
        """The entries are what counts."""


def _made(kind: Any, state: Any) -> Inert:
    """How a tensordict of today makes a TensorDict: from its class and its state."""
    made = Inert()
    made.state = state
    return made


def _tensor(
    storage: NDArray[Any], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any
) -> NDArray[Any]:
    """A view of a storage; offset and strides count elements."""
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise ValueError("a tensor with a negative size")
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(storage):
        raise ValueError("a tensor larger than its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _first(value: Any, *rest: Any) -> Any:
    return value


KNOWN: Mapping[tuple[str, str], Any] = MappingProxyType(
    {
        ("tensordict.tensordict", "TensorDict"): Inert,  # 2023
        ("tensordict._td", "TensorDict"): Inert,
        ("tensordict._td", "_StringOnlyDict"): Names,
        ("tensordict.utils", "_StringOnlyDict"): Names,
        ("tensordict._reductions", "_make_td"): _made,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _first,
        ("torch", "Size"): tuple,
        ("torch", "device"): _first,
        ("collections", "OrderedDict"): Names,
        ("__builtin__", "set"): set,
        **{("torch", name): np.dtype(kind) for name, kind in STORAGES.items()},
    }
)
"""(module, name) in a pickle -> what stands for it."""


@dataclass(frozen=True)
class TorchFile:
    """A file, read.

    Attributes:
        path: the file.
        content: what was saved: dictionaries, lists and plain values; tensors as read-only numpy arrays, a TensorDict
            as a dictionary of its entries, a torch.Size as a tuple, a device as its name.
    """

    path: Path
    content: Any = field(repr=False)
    _map: mmap.mmap = field(repr=False)

    def release(self) -> None:
        """Give the pages that were read back to the system; they can be read again."""
        self._map.madvise(mmap.MADV_DONTNEED)

    @classmethod
    def open(cls, path: Path, expected: str) -> TorchFile:
        """Map a file and read its structure.

        Args:
            expected: what should be there, for messages: "a checkpoint of …".

        Raises:
            UserError: no such file, one that is cut short or damaged, in another format, or that names anything but
                tensors and plain values.
        """
        if not path.is_file():
            raise UserError(f"no file {path}: expected is {expected}")
        with path.open("rb") as file:
            if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
                raise UserError(f"{path} is no file of torch: expected is {expected}")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise UserError(
                f"{path} is cut short or damaged: its {len(mapped):,} bytes do not end as a file of torch; download "
                "or copy it again"
            ) from error
        with archive:
            return cls(path, _Archive(path, archive, mapped).content(expected), mapped)


class _Archive:
    """The records of one file."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, mapped: mmap.mmap) -> None:
        self.path, self.archive, self.mapped = path, archive, mapped
        self.records = {info.filename.partition("/")[2]: info for info in archive.infolist()}

    def content(self, expected: str) -> Any:
        if "data.pkl" not in self.records:
            raise UserError(f"{self.path} holds no data.pkl: expected is {expected}")
        if "byteorder" in self.records and self._read("byteorder") != b"little":
            raise UserError(f"{self.path} has numbers in big-endian order, which is not supported")
        try:
            return _plain(_Reader(self).load())
        except UserError:
            raise
        except Exception as error:
            # A damaged or hostile pickle can make any of the stand-ins fail in any way.
            raise UserError(f"{self.path} cannot be understood ({error!r}): expected is {expected}") from error

    def _read(self, record: str) -> bytes:
        try:
            return self.archive.read(self.records[record])
        except (zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{self.path} is damaged ({error}): download or copy it again") from error

    def pickle(self) -> io.BytesIO:
        return io.BytesIO(self._read("data.pkl"))

    def storage(self, key: str, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        """The numbers of a storage, one-dimensional, mapped."""
        info = self.records.get(f"data/{key}")
        if info is None or info.compress_type != zipfile.ZIP_STORED or info.file_size < count * dtype.itemsize:
            raise UserError(f"{self.path} is damaged: it lacks {count:,} numbers of data/{key}; download it again")
        # The record's bytes come after its local header, whose name and extra field have lengths of their own.
        header = self.mapped[info.header_offset : info.header_offset + LOCAL_HEADER_BYTES]
        name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
        offset = info.header_offset + LOCAL_HEADER_BYTES + name_bytes + extra_bytes
        if offset + info.file_size > len(self.mapped):
            raise UserError(f"{self.path} is cut short: data/{key} goes beyond its end; download it again")
        return np.frombuffer(self.mapped, dtype, count, offset) if count else np.empty(0, dtype)


class _Reader(pickle.Unpickler):
    """Knows stand-ins only."""

    def __init__(self, archive: _Archive) -> None:
        super().__init__(archive.pickle())
        self.archive = archive

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN:
            raise UserError(
                f"{self.archive.path} names {module}.{name}, which plain tensors do not need: it was not read, because "
                "that could run code from the file"
            )
        return KNOWN[module, name]

    def persistent_load(self, pid: Any) -> NDArray[Any]:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise ValueError("a storage of unknown kind")
        return self.archive.storage(str(key), dtype, int(count))


def _plain(value: Any) -> Any:
    """The same with dictionaries for TensorDicts and dictionary classes."""
    if isinstance(value, Inert):
        state = value.state[0] if isinstance(value.state, tuple) else value.state
        return _plain(state["_tensordict"])
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value
