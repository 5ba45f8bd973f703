"""Checkpoints on disk: find, read, load into a Decoder, save for transformers."""

from ossia.checkpoint.find import find, text_files, text_folder
from ossia.checkpoint.load import load, read_config
from ossia.checkpoint.save import save

__all__ = ["find", "load", "read_config", "save", "text_files", "text_folder"]
