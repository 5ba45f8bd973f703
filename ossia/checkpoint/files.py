"""The tensors of a checkpoint folder: safetensors headers are read and checked, data is mapped from
the file, not copied.

The format (https://github.com/huggingface/safetensors#format): 8 bytes of header length, little-
endian; a JSON header that gives each tensor's dtype, shape and byte offsets; the data, without
gaps. Other formats are never opened, because pickles run code.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import posixpath
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ossia.errors import OssiaError, shortened
from ossia.system import huge_pages
from ossia.system.files import MAX_JSON, check_regular, json_object, read_json

try:
    from ossia.ops import _native
except ImportError:  # built without a compiler
    _native = None

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}

_log = logging.getLogger(__name__)

_LENGTH_BYTES = 8
# A thousandth of these would do for any model; more would take seconds to parse.
MAX_HEADER = MAX_JSON
_MAX_DIMENSIONS = 16
_MAX_NUMBER = 10**30  # of the header; larger ones would make arithmetic slow
_CHUNK = 16 << 20  # bytes of a file that a thread reads at a time
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its header entry, and the offset of its data in the file."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    buffer: mmap.mmap = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def tensor(self) -> Tensor:
        """The tensor as a view of the mapped file, with a storage of its own.

        The mapping is private: writes to the tensor stay in this process. Data that is not aligned
        to the item size is copied, because PyTorch assumes alignment.
        """
        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.dtype)
        if self.offset % self.dtype.itemsize:
            raw = torch.frombuffer(
                self.buffer, dtype=torch.uint8, offset=self.offset, count=self.nbytes
            )
            return raw.clone().view(self.dtype).view(self.shape)
        flat = torch.frombuffer(
            self.buffer, dtype=self.dtype, offset=self.offset, count=math.prod(self.shape)
        )
        return flat.view(self.shape)


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint folder, by name, from headers alone.

    Reads model.safetensors, else the shards of model.safetensors.index.json, else any
    *.safetensors. As in transformers, the index chooses files, not tensors: each shard counts as a
    whole, and of two tensors of one name the last. Raises OssiaError, naming file and tensor, for
    data that is missing, truncated, contradictory or not safetensors.
    """
    found: dict[str, StoredTensor] = {}
    files, indexed = weight_files(folder)
    for file in files:
        for tensor in read_header(file):
            if (other := found.get(tensor.name)) is not None:
                name = shortened(tensor.name)
                if not indexed:
                    raise OssiaError(f"{file}: tensor {name} is also in {other.file.name}")
                _log.warning("%s: tensor %s replaces that of %s", file, name, other.file.name)
            found[tensor.name] = tensor
    return found


def read_header(path: Path) -> Iterator[StoredTensor]:
    """The tensors of one safetensors file in file order, without reading their data. Raises
    OssiaError as `read_tensors` does.
    """
    buffer = _map(path)
    if len(buffer) < _LENGTH_BYTES:
        raise OssiaError(f"{path} is truncated: {len(buffer)} bytes; copy it again")
    length = int.from_bytes(buffer[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER:
        raise OssiaError(f"{path}: a header of {length} bytes is absurd; not a safetensors file?")
    start = _LENGTH_BYTES + length
    if start > len(buffer):
        raise OssiaError(
            f"{path} is truncated: its header ends at byte {start}, the file at {len(buffer)}; "
            "copy it again"
        )
    header = json_object(buffer[_LENGTH_BYTES:start], f"{path}: header")
    header.pop("__metadata__", None)
    tensors = [_entry(path, name, entry, start, buffer) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_offsets(path, tensors, start, len(buffer))
    yield from tensors


def in_memory(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The same tensors with their files copied into process memory, in huge pages if available. The
    system may drop idle pages of a mapped file, but not these.

    Raises OssiaError if a file cannot be read or does not fit in memory.
    """
    copies = {file: _copy(file) for file in {tensor.file: None for tensor in stored.values()}}
    return {name: replace(tensor, buffer=copies[tensor.file]) for name, tensor in stored.items()}


def refuse_cut(stored: Mapping[str, StoredTensor]) -> None:
    """Raise OssiaError for a file that is shorter now than when it was mapped: what was read of its
    last page since then may be zeros.
    """
    for file, buffer in {tensor.file: tensor.buffer for tensor in stored.values()}.items():
        if file.stat().st_size < len(buffer):
            raise OssiaError(f"{file} was cut short while it was read; copy it again")


def _copy(path: Path) -> mmap.mmap | bytes:
    try:
        size = path.stat().st_size
        if not size:
            return b""
        buffer = huge_pages.anonymous(size)
        memory = memoryview(buffer)

        def read(start: int) -> None:
            read_into(path, start, memory[start : start + _CHUNK])

        with ThreadPoolExecutor(os.cpu_count()) as readers:
            list(readers.map(read, range(0, size, _CHUNK)))
        return buffer
    except OSError as error:
        raise OssiaError(f"cannot read {path} into memory: {error.strerror}") from error


def read_into(path: Path, start: int, memory: memoryview) -> None:
    """Fill memory with the bytes of a file from `start` on. Raises OssiaError if it cannot."""
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while memory:
                count = file.readinto(memory)
                if not count:
                    raise OssiaError(f"{path} was cut short while it was read; copy it again")
                memory = memory[count:]
    except OSError as error:
        raise OssiaError(f"cannot read {path}: {error.strerror}") from error


def weight_files(folder: Path) -> tuple[list[Path], bool]:
    """The files of a folder's weights in the order in which they are read, and whether an index
    names them. Raises OssiaError if there are none, or one that the index names is missing.
    """
    try:
        present = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise OssiaError(f"cannot read the folder {folder}: {error.strerror}") from error
    if SINGLE_FILE in present:
        return [folder / SINGLE_FILE], False
    if INDEX_FILE in present:
        shards = _shards(folder / INDEX_FILE)
        for name, count in shards.items():
            if name not in present and not _exists(folder / name):
                raise OssiaError(
                    f"{folder}: shard {shortened(name)} is missing; {INDEX_FILE} says it holds "
                    f"{count} tensors; copy it again"
                )
        return [folder / name for name in sorted(shards)], True
    names = [name for name in present if name.endswith(".safetensors")]
    if names:
        return [folder / name for name in names], False
    pickles = [name for name in present if name.endswith(PICKLES)]
    if pickles:
        raise OssiaError(
            f"{folder} holds only pickle checkpoints ({', '.join(pickles[:3])}), which can run "
            "code and are never opened; convert them to safetensors, as transformers' "
            "save_pretrained does"
        )
    if any(name.endswith(".gguf") for name in present):
        raise OssiaError(f"{folder} holds GGUF files, which are not supported; use safetensors")
    raise OssiaError(f"{folder} holds no .safetensors file; copy the weights there")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long
        return False


def _shards(path: Path) -> Counter[str]:
    """The files that an index names, and how many tensors each should hold."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise OssiaError(f"{path}: weight_map is missing or not an object")
    shards: Counter[str] = Counter()
    for name, file in weight_map.items():
        inside = isinstance(file, str) and posixpath.normpath(file)
        if not inside or inside.startswith(("..", "/")) or inside == "." or "\0" in inside:
            raise OssiaError(
                f"{path}: tensor {shortened(name)} has no file name in this folder: "
                f"{shortened(repr(file))}"
            )
        shards[inside] += 1
    return shards


def _map(path: Path) -> mmap.mmap | bytes:
    """The file's bytes, mapped copy-on-write; b"" for an empty file, which mmap refuses."""
    # Without this flag Linux refuses private maps of files larger than memory and swap. Python
    # names it from 3.13 on.
    reserve_none = getattr(mmap, "MAP_NORESERVE", 0)
    try:
        check_regular(path)
        with path.open("rb") as file:
            if not path.stat().st_size:
                return b""
            if reserve_none:
                flags = mmap.MAP_PRIVATE | reserve_none
                buffer = mmap.mmap(
                    file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE
                )
            else:
                buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise OssiaError(f"cannot read {path}: {error.strerror}") from error
    _watch(path, buffer)
    return buffer


def _watch(path: Path, buffer: mmap.mmap) -> None:
    """Have a line said if the file is cut short while it is mapped: no exception can be raised
    where the missing part is read.
    """
    if _native is None:
        return
    address = torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()
    line = f"error: {path} was cut short by another process while it was in use; copy it again\n"
    _native.watch(address, len(buffer), line)
    weakref.finalize(buffer, _native.unwatch, address).atexit = False


def _entry(path: Path, name: str, entry: Any, start: int, buffer: Any) -> StoredTensor:
    """A header entry, with types and size checked."""
    where = f"{path}: tensor {shortened(name)}"
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape[: _MAX_DIMENSIONS + 1], begin, end]
    except (KeyError, TypeError, ValueError) as error:
        raise OssiaError(
            f"{where} lacks a dtype, a shape or two data_offsets in the header"
        ) from error
    if not all(type(number) is int and 0 <= number < _MAX_NUMBER for number in numbers):
        raise OssiaError(f"{where} has a shape or offsets that are not counts")
    if len(shape) > _MAX_DIMENSIONS:
        raise OssiaError(f"{where} has {len(shape)} dimensions; at most {_MAX_DIMENSIONS} can be")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise OssiaError(f"{where} has the unknown dtype {shortened(repr(dtype))}")
    if begin > end:
        raise OssiaError(f"{where} begins at byte {begin}, after its end at {end}")
    tensor = StoredTensor(name, path, DTYPES[dtype], tuple(shape), start + begin, buffer)
    if end - begin != tensor.nbytes:
        raise OssiaError(
            f"{where} has {end - begin} bytes; {dtype} {tensor.shape} needs {tensor.nbytes}"
        )
    return tensor


def _check_offsets(path: Path, tensors: list[StoredTensor], start: int, size: int) -> None:
    """Check that the tensors, sorted by offset, fill the file from `start` to its end at `size`."""
    for tensor in tensors:  # first, else later tensors get the blame
        if tensor.offset + tensor.nbytes > size:
            name = shortened(tensor.name)
            raise OssiaError(
                f"{path} is truncated, or its header is wrong: tensor {name} ends at byte "
                f"{tensor.offset + tensor.nbytes}, the file at {size}; copy it again"
            )
    position = start
    for tensor in tensors:
        if tensor.offset < position:
            name = shortened(tensor.name)
            raise OssiaError(f"{path}: tensor {name} overlaps the one before it")
        if tensor.offset > position:
            raise OssiaError(
                f"{path}: the {tensor.offset - position} bytes before tensor "
                f"{shortened(tensor.name)} belong to no tensor"
            )
        position += tensor.nbytes
    if position != size:
        raise OssiaError(f"{path}: {size - position} bytes after the last tensor belong to none")
