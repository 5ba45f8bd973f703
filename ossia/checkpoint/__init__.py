"""Checkpoints on disk: find, read, load into a Decoder, save for transformers."""

from ossia.checkpoint.contents import read_config, stored_bytes
from ossia.checkpoint.find import (
    find,
    headers,
    is_packaged,
    packaged_model,
    text_files,
    text_folder,
)
from ossia.checkpoint.fit import Beside, Placement
from ossia.checkpoint.load import (
    check,
    check_activations,
    fit,
    load,
    load_share,
)
from ossia.checkpoint.save import save

__all__ = [
    "Beside",
    "Placement",
    "check",
    "check_activations",
    "find",
    "fit",
    "headers",
    "is_packaged",
    "load",
    "load_share",
    "packaged_model",
    "read_config",
    "save",
    "stored_bytes",
    "text_files",
    "text_folder",
]
