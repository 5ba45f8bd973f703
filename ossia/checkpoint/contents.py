"""What a checkpoint folder holds, by its config.json and the headers of its files, and whether the
two fit. Weights are read only where a matrix and its tied copy must be compared.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ossia import families, ops
from ossia.checkpoint import regions
from ossia.checkpoint.assemble import parameter_dtypes
from ossia.checkpoint.files import StoredTensor, read_tensors
from ossia.checkpoint.find import CONFIG_FILE
from ossia.checkpoint.match import match, tied_differ
from ossia.config import ModelConfig
from ossia.errors import OssiaError
from ossia.families.keys import warn
from ossia.families.mapping import Layout
from ossia.model import Decoder
from ossia.system.files import read_json

DENSE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FLOATS = (*DENSE_DTYPES.values(), torch.float64)


@dataclass(frozen=True)
class Contents:
    """What a folder holds. stored: by the layout's names; ignored: the names of all others."""

    folder: Path
    config: ModelConfig
    layout: Layout
    stored: Mapping[str, StoredTensor]
    ignored: frozenset[str] = frozenset()

    @property
    def dense(self) -> torch.dtype:
        """Of the dense weights."""
        return DENSE_DTYPES[self.config.dtype]

    @property
    def file_bytes(self) -> int:
        """Size of the files that hold the tensors."""
        return sum(file.stat().st_size for file in {tensor.file for tensor in self.stored.values()})

    def empty(self, backend: ops.Backend = ops.REFERENCE) -> Decoder:
        """The Decoder on the meta device. Raises OssiaError if its tensors would be too large."""
        try:
            with torch.device("meta"):
                return Decoder(self.config, backend)
        except (RuntimeError, TypeError, OverflowError) as error:
            reason = str(error).partition("\n")[0]
            raise OssiaError(
                f"{self.folder / CONFIG_FILE}: its sizes are larger than tensors can be ({reason})"
            ) from error

    def check(self, decoder: Decoder) -> None:
        """Raise OssiaError for a tensor whose shape or dtype differs from those of the decoder's
        parameters.
        """
        empty, rows = decoder.state_dict(), self.layout.rows
        dtypes = parameter_dtypes(empty, self.dense)
        ours = {name: tuple(tensor.shape) for name, tensor in empty.items()}
        theirs = regions.stored_shapes(rows, ours)
        for name, parts in regions.grouped(rows, "theirs").items():
            tensor, wanted = self.stored[name], dtypes[parts[0].ours]
            if tensor.shape != theirs[name]:
                raise OssiaError(
                    f"{tensor.file}: tensor {name} has the shape {tensor.shape}, "
                    f"expected {theirs[name]} by {CONFIG_FILE}"
                )
            fits = tensor.dtype in _FLOATS if wanted.is_floating_point else tensor.dtype is wanted
            if not fits:
                allowed = _FLOATS if wanted.is_floating_point else (wanted,)
                raise OssiaError(
                    f"{tensor.file}: tensor {name} has the dtype {_short(tensor.dtype)}, "
                    f"expected {' or '.join(map(_short, allowed))}"
                )
        regions.check_complete(rows, ours, theirs)  # last: its cost grows with the sizes


def read_contents(
    folder: Path, ignore_unknown_keys: bool = False, dtype: str | None = None
) -> Contents:
    """The contents, without reading weights. A `dtype` takes the place of the config's. Raises
    OssiaError, naming file and tensor or key, if the names of the tensors do not fit config.json.
    """
    config, stored = _read_headers(folder, ignore_unknown_keys, dtype)
    stored = stored or read_tensors(folder)  # which says what is missing
    found = match(families.layouts(config), stored, folder, ignore_unknown_keys)
    used = {tensor.name for tensor in found.stored.values()}
    ignored = frozenset(stored.keys() - used)
    return Contents(folder, config, found.layout, found.stored, ignored)


def read_config(folder: str | os.PathLike[str], ignore_unknown_keys: bool = False) -> ModelConfig:
    """The architecture of a checkpoint folder: what config.json describes, unless the stored
    weights show otherwise.

    If config.json does not name a dtype, it is that of most stored weights. An entry of
    quantization does not count if all weights are plain, nor does `tie_word_embeddings` if both
    matrices are stored and differ. Raises OssiaError that names file and key.
    """
    return _read_headers(Path(folder), ignore_unknown_keys)[0]


def _read_headers(
    folder: Path, ignore_unknown_keys: bool, dtype: str | None = None
) -> tuple[ModelConfig, dict[str, StoredTensor]]:
    """The architecture, as `read_config` returns it, and the stored tensors; none if the folder
    holds only a config. A `dtype` takes the place of the config's.
    """
    stored = read_tensors(folder) if any(folder.glob("*.safetensors")) else {}
    path = folder / CONFIG_FILE
    data = read_json(path)
    if data.get("quantization_config") and stored and _is_plain(stored):
        warn(
            f"{path}: the weights are not quantized, so 'quantization_config' is ignored; "
            "remove it for other programs"
        )
        data = {key: value for key, value in data.items() if key != "quantization_config"}
    if dtype is not None:  # whatever the config says, and in original/, whose config has no dtype
        data = {key: value for key, value in data.items() if key not in ("dtype", "torch_dtype")}
    config = families.from_hf(data, str(path), ignore_unknown_keys)
    if dtype is not None:
        config = replace(config, dtype=dtype)
    elif not any(data.get(key) for key in ("dtype", "torch_dtype")):
        config = replace(config, dtype=_prevailing_dtype(stored, config.dtype))
    if config.tied_embeddings and tied_differ(families.layouts(config), stored):
        warn(
            f"{path}: 'tie_word_embeddings' is true, but the weights hold two different matrices; "
            "both are used, as in transformers"
        )
        config = replace(config, tied_embeddings=False)
    return config, stored


def stored_bytes(folder: Path) -> int:
    """The bytes of a checkpoint folder's tensors."""
    return sum(tensor.nbytes for tensor in read_tensors(folder).values())


def _is_plain(stored: Mapping[str, StoredTensor]) -> bool:
    """Whether no tensor is in a format of quantized weights: all those use integers or 8 bits."""
    return all(tensor.dtype in _FLOATS for tensor in stored.values())


def _prevailing_dtype(stored: Mapping[str, StoredTensor], default: str) -> str:
    """The dense dtype that holds the most elements."""
    elements = dict.fromkeys(DENSE_DTYPES, 0)
    for tensor in stored.values():
        for name, dtype in DENSE_DTYPES.items():
            if tensor.dtype is dtype:
                elements[name] += tensor.nbytes // dtype.itemsize
    prevailing = max(elements, key=lambda name: elements[name])
    return prevailing if elements[prevailing] else default


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
