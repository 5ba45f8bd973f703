"""The contents of a checkpoint folder, from its config.json and the headers of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ossia import families
from ossia.checkpoint.files import StoredTensor, read_tensors
from ossia.checkpoint.load import check_headers, read_headers, without_weights
from ossia.checkpoint.match import match
from ossia.config import ModelConfig
from ossia.families.mapping import Layout


@dataclass(frozen=True)
class Contents:
    """stored: by the layout's names; ignored: the names of all others."""

    config: ModelConfig
    layout: Layout
    stored: Mapping[str, StoredTensor]
    ignored: frozenset[str] = frozenset()

    @property
    def file_bytes(self) -> int:
        """Size of the files that hold the tensors."""
        return sum(file.stat().st_size for file in {tensor.file for tensor in self.stored.values()})


def read_contents(folder: Path, ignore_unknown_keys: bool = False) -> Contents:
    """The contents, without reading weights. Raises OssiaError, naming file and tensor or key, if
    the tensors do not fit config.json.
    """
    config, stored = read_headers(folder, ignore_unknown_keys)
    stored = stored or read_tensors(folder)
    found = match(families.layouts(config), stored, folder, ignore_unknown_keys)
    check_headers(without_weights(config, folder), found.layout, found.stored)
    used = {tensor.name for tensor in found.stored.values()}
    return Contents(config, found.layout, found.stored, frozenset(stored.keys() - used))
