"""Saves a Decoder as a Hugging Face checkpoint folder: by the rows that load it, applied in
reverse, so that nothing can be omitted.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from ossia import families
from ossia.checkpoint import regions
from ossia.checkpoint.assemble import parameter_dtypes
from ossia.checkpoint.contents import DENSE_DTYPES
from ossia.checkpoint.files import DTYPES, INDEX_FILE, SINGLE_FILE
from ossia.checkpoint.find import CONFIG_FILE, MORE_TEMPLATES, text_files
from ossia.config import ExpertFormat, ModelConfig, expert_formats, with_expert_format
from ossia.errors import OssiaError
from ossia.families.mapping import Row
from ossia.model import Decoder
from ossia.model.linear import Weighted
from ossia.ops import packing
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.weight import ExpertsKind, Matrix, MatrixKind, dense, tensors_of
from ossia.system.files import replacing, write_file

# Files of an earlier save, which a new one replaces.
_OURS = re.compile(
    rf"{re.escape(CONFIG_FILE)}|{re.escape(INDEX_FILE)}|model(-\d+-of-\d+)?\.safetensors"
)
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save(
    decoder: Decoder,
    folder: str | os.PathLike[str],
    *,
    experts: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    extra_files: Iterable[str | os.PathLike[str]] = (),
) -> dict[str, float]:
    """Write config.json and the weights, in shards of at most `max_shard_bytes` (a larger tensor
    gets a shard of its own). Low-rank updates are merged into their matrices. Returns the relative
    error (root mean square) of each stack of experts that was packed, by module name.

    experts: "mxfp4" quantizes the experts, "dense" unpacks them, None keeps their format;
    config.json records it. dtype: of the dense weights; by default the smallest that represents all
    of them. Experts are quantized from the unrounded weights, not from their rounding to `dtype`.
    The tokenizer, chat template and generation defaults of a decoder that was loaded from a folder
    are copied beside the weights, then extra_files; other files of an existing folder are kept. The
    folder is replaced atomically, once everything is on disk, so a crash leaves the old one intact.
    It may be the folder that the decoder was loaded from. Raises OssiaError if no family can
    express the model or the folder cannot be written.
    """
    if not isinstance(decoder, Decoder):
        raise OssiaError(f"a Decoder is saved, as load_model returns, not {type(decoder).__name__}")
    if not isinstance(folder, str | os.PathLike) or "\0" in os.fspath(folder):
        raise OssiaError(f"a checkpoint is saved to a folder, not {folder!r}")
    folder = Path(folder)
    if decoder.is_int8:
        raise OssiaError("a model with int8 dense weights is not saved: load it without dense=int8")
    config = _saved_config(decoder, experts, dtype)
    with torch.device("meta"):
        target = Decoder(config)
    empty = target.state_dict()
    source = _Weights(decoder, parameter_dtypes(empty, DENSE_DTYPES[config.dtype]))
    source.check(target)
    data = families.to_hf(config)
    shards = _shards(_tensors(config, empty, source.dtypes), max_shard_bytes)
    try:
        with replacing(folder, _OURS) as staging:
            for file in map(Path, [*_own_text_files(decoder), *extra_files]):
                inside = file.parent.name == MORE_TEMPLATES
                place = staging / MORE_TEMPLATES if inside else staging
                place.mkdir(exist_ok=True)
                shutil.copy2(file, place / file.name)
            names = _shard_names(len(shards))
            for name, shard in zip(names, shards, strict=True):
                write_file(staging / name, _file_bytes(shard, source))
            if len(shards) > 1:
                index = _index(names, shards)
                write_file(staging / INDEX_FILE, [json.dumps(index, indent=2).encode()])
            write_file(staging / CONFIG_FILE, [json.dumps(data, indent=2).encode()])
    except OSError as error:
        raise OssiaError(f"cannot save to {folder}: {error.strerror or error}") from error
    return source.errors()


def _own_text_files(decoder: Decoder) -> list[Path]:
    """Those of the checkpoint that the decoder was loaded from, as far as they are still there."""
    return [] if decoder.origin is None else text_files(decoder.origin)


@dataclass(frozen=True)
class _Tensor:
    """A tensor to write, and the rows that fill it."""

    name: str
    shape: regions.Shape
    dtype: torch.dtype
    rows: list[Row]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _Weights:
    """The decoder's weights on the CPU, in the dtype to save. Experts are packed or unpacked one at
    a time, when they are read.
    """

    def __init__(self, decoder: Decoder, dtypes: Mapping[str, torch.dtype]) -> None:
        self.matrices, self.others = _parts(decoder)
        self.dtypes = dtypes
        self._scales: dict[tuple[str, int], Tensor] = {}  # computed with the blocks, written later
        self._lost: dict[str, tuple[float, float]] = {}  # sums of squares: error, weights

    def check(self, target: Decoder) -> None:
        """Raise OssiaError unless the weights match the config to save."""
        matrices, others = _parts(target)
        described = {**{f"{n}.weight": m.shape for n, m in matrices.items()}, **_shapes(others)}
        own = {**{f"{n}.weight": m.shape for n, m in self.matrices.items()}, **_shapes(self.others)}
        if difference := sorted(own.keys() ^ described.keys()):
            raise OssiaError(
                "the decoder's parameters are not those its config describes: "
                f"{', '.join(difference[:3])}"
            )
        for name, shape in described.items():
            if own[name] != shape:
                raise OssiaError(
                    f"parameter {name} has the shape {tuple(own[name])}, "
                    f"its config says {tuple(shape)}"
                )

    def read(self, name: str, index: tuple[int | slice, ...] = ()) -> Tensor:
        """A region of a parameter of the saved model. If experts change their format, `index`
        begins with the expert.
        """
        return self._region(name, index).detach().to(device="cpu", dtype=self.dtypes[name])

    def errors(self) -> dict[str, float]:
        """The relative error of each stack that was packed."""
        return {
            name: math.sqrt(lost / total) if total else 0.0
            for name, (lost, total) in self._lost.items()
        }

    def _region(self, name: str, index: tuple[int | slice, ...]) -> Tensor:
        if name in self.others:
            return self.others[name][index]
        module, _, kind = name.rpartition(".")
        value = self.matrices[module]
        if kind == "weight":
            if isinstance(value, Tensor):
                return value[index]
            if len(value.shape) < 3:
                return dense(value)[index]
            expert, *rest = index
            assert isinstance(expert, int)
            return dense(value, expert)[tuple(rest)]
        if isinstance(value, MatrixKind) and isinstance(stored := value.stored(), MXFP4):
            return stored.tensors()[kind][index]
        expert, *rest = index
        assert isinstance(expert, int)
        return self._packed(module, value, expert)[kind][tuple(rest)]

    def _packed(self, module: str, stack: Matrix, expert: int) -> dict[str, Tensor]:
        if (module, expert) in self._scales:
            return {"scales": self._scales.pop((module, expert))}
        matrix = stack[expert]
        assert isinstance(matrix, Tensor | MatrixKind)
        try:
            packed, changed, squares = packing.quantize_matrix(matrix)
        except ValueError as error:
            raise OssiaError(f"expert {expert} of {module}.weight: {error}") from error
        self._scales[module, expert] = packed.scales
        lost, total = self._lost.get(module, (0.0, 0.0))
        self._lost[module] = lost + changed, total + squares
        return packed.tensors()


def _parts(decoder: Decoder) -> tuple[dict[str, Matrix], dict[str, Tensor]]:
    """The weights by module, and all other tensors by name."""
    matrices: dict[str, Matrix] = {}
    others = decoder.state_dict()
    for name, module in decoder.named_modules():
        if isinstance(module, Weighted):
            value = module.value
            value = value.whole() if isinstance(value, ExpertsKind) else value
            assert isinstance(value, Tensor | MatrixKind)
            matrices[name] = value
            for part in tensors_of(value):
                del others[f"{name}.{part}"]
    return matrices, others


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _saved_config(decoder: Decoder, experts: str | None, dtype: torch.dtype | None) -> ModelConfig:
    """The config to write, with the requested format of experts and the dtype."""
    config = decoder.config
    if dtype is None:
        floats = {t.dtype for t in decoder.state_dict().values() if t.is_floating_point()}
        dtype = reduce(torch.promote_types, floats)
    names = [name for name, known in DENSE_DTYPES.items() if known is dtype]
    if not names:
        raise OssiaError(f"weights of {dtype} cannot be saved; convert the decoder first")
    config = replace(config, dtype=names[0])
    if experts is None:
        return config
    if experts not in list(ExpertFormat):
        raise OssiaError(f"experts must be mxfp4, dense or None, not {experts!r}")
    if not expert_formats(config):
        raise OssiaError(f"the model has no experts to save as {experts}")
    try:
        return with_expert_format(config, ExpertFormat(experts))
    except ValueError as error:
        raise OssiaError(f"the experts cannot be saved as {experts}: {error}") from error


def _tensors(
    config: ModelConfig, empty: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
) -> list[_Tensor]:
    """The tensors to write, in the order of the family's first layout."""
    rows = families.layouts(config)[0].rows
    ours = {name: tuple(tensor.shape) for name, tensor in empty.items()}
    theirs = regions.stored_shapes(rows, ours)
    regions.check_complete(rows, ours, theirs)
    return [
        _Tensor(name, theirs[name], dtypes[group[0].ours], group)
        for name, group in regions.grouped(rows, "theirs").items()
    ]


def _shards(tensors: list[_Tensor], limit: int) -> list[list[_Tensor]]:
    """Tensors in order, as many per shard as fit."""
    if limit < 1:
        raise OssiaError(f"max_shard_bytes must be at least 1, not {limit}")
    shards: list[list[_Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE_FILE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _index(names: list[str], shards: list[list[_Tensor]]) -> dict[str, object]:
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    placed = zip(names, shards, strict=True)
    weight_map = {tensor.name: name for name, shard in placed for tensor in shard}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def _file_bytes(tensors: list[_Tensor], source: _Weights) -> Iterator[bytes | memoryview]:
    """A safetensors file, piece by piece. Wide dtypes come first, which aligns every tensor without
    gaps.
    """
    tensors = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (begin, end),
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    yield len(encoded).to_bytes(8, "little")
    yield encoded
    written = 0
    for piece in _ahead(piece for tensor in tensors for piece in _pieces(tensor, source)):
        data = _memory(piece)
        written += len(data)
        yield data
    assert written == end, "the tensors are not of the sizes in the header"


def _ahead(pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """The pieces, each computed while the one before it is written."""
    with ThreadPoolExecutor(1, thread_name_prefix="ossia-save") as worker:
        waiting = worker.submit(next, pieces, None)
        while (piece := waiting.result()) is not None:
            waiting = worker.submit(next, pieces, None)
            yield piece


def _pieces(tensor: _Tensor, source: _Weights) -> Iterator[Tensor]:
    """The tensor's contiguous parts in order: one per expert of a stack, otherwise one."""
    row = tensor.rows[0]
    if len(tensor.rows) == 1 and not row.their_index and not row.our_index:
        stacked = len(tensor.shape) > 2
        for index in [(expert,) for expert in range(tensor.shape[0])] if stacked else [()]:
            value = source.read(row.ours, index)
            yield (value.mT if row.transpose else value).contiguous()
        return
    whole = torch.empty(tensor.shape, dtype=tensor.dtype)
    for row in tensor.rows:
        oriented = whole.mT if row.transpose else whole
        oriented[row.their_index] = source.read(row.ours, row.our_index)
    yield whole


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, which must outlive the view."""
    pointer = (ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())
    return memoryview(pointer).cast("B")
