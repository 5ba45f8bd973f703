"""The contents of a checkpoint folder, from its config.json and the headers of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ossia import families
from ossia.checkpoint.files import StoredTensor, read_tensors
from ossia.checkpoint.load import check_headers, choose_layout, read_config, without_weights
from ossia.config import ModelConfig
from ossia.families.mapping import Layout


@dataclass(frozen=True)
class Contents:
    config: ModelConfig
    layout: Layout
    stored: Mapping[str, StoredTensor]

    @property
    def file_bytes(self) -> int:
        """Size of the files that hold the tensors."""
        return sum(file.stat().st_size for file in {tensor.file for tensor in self.stored.values()})


def read_contents(folder: Path) -> Contents:
    """The contents, without reading weights. Raises OssiaError, naming file and tensor or key, if
    the tensors do not fit config.json.
    """
    config = read_config(folder)
    stored = read_tensors(folder)
    layout = choose_layout(families.layouts(config), stored, folder)
    check_headers(without_weights(config, folder), layout, stored)
    return Contents(config, layout, stored)
