"""Run, train and explain GPT-2, Qwen3 and gpt-oss as one decoder, composed from a config.

Importing this package is fast: modules that need torch are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Importing the submodule binds its name in the package once; the function `config` below then
# replaces it.
from ossia.config import ModelConfig
from ossia.errors import OssiaError

if TYPE_CHECKING:
    from pathlib import Path

    from ossia.api import LLM, Completion, Finished, Reply, Stream, ToolCall
    from ossia.checkpoint import save as save_model
    from ossia.insight.xray import Trace, xray
    from ossia.model import Decoder
    from ossia.text import Channel, Event, TextDelta, ToolCallDelta, ToolCallStart

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "Channel",
    "Completion",
    "Event",
    "Finished",
    "ModelConfig",
    "OssiaError",
    "Reply",
    "Stream",
    "TextDelta",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallStart",
    "Trace",
    "config",
    "load_model",
    "save_model",
    "xray",
]

# Public name -> the module that defines it, and its name there.
_HOMES = {
    "LLM": ("ossia.api", "LLM"),
    "Completion": ("ossia.api", "Completion"),
    "Finished": ("ossia.api", "Finished"),
    "Reply": ("ossia.api", "Reply"),
    "Stream": ("ossia.api", "Stream"),
    "ToolCall": ("ossia.api", "ToolCall"),
    "save_model": ("ossia.checkpoint", "save"),
    "Trace": ("ossia.insight.xray", "Trace"),
    "xray": ("ossia.insight.xray", "xray"),
    "Channel": ("ossia.text.events", "Channel"),
    "Event": ("ossia.text.events", "Event"),
    "TextDelta": ("ossia.text.events", "TextDelta"),
    "ToolCallStart": ("ossia.text.events", "ToolCallStart"),
    "ToolCallDelta": ("ossia.text.events", "ToolCallDelta"),
}


def config(name_or_path: str | Path) -> ModelConfig:
    """The architecture of a preset ("gpt2", "qwen3-0.6b", "gpt-oss-20b", ...) or of a checkpoint
    folder or hub name.

    A preset takes precedence over a folder of the same name (write ./NAME for the folder). Raises
    OssiaError for any other name.
    """
    from ossia.families import PRESETS, preset

    if (found := preset(str(name_or_path))) is not None:
        return found
    from pathlib import Path

    from ossia import checkpoint

    name = str(name_or_path)
    if not (Path(name).exists() or "/" in name or checkpoint.is_packaged(name)):
        raise OssiaError(
            f"{name_or_path} is neither a checkpoint folder nor a preset; "
            f"the presets are {', '.join(PRESETS)}"
        )
    with checkpoint.headers(name_or_path) as folder:
        return checkpoint.read_config(folder)


def load_model(path_or_hub_name: str | Path, **options: Any) -> Decoder:
    """The Decoder of a checkpoint folder or hub name, in eval mode. options: the fields of
    `ossia.options.LoadOptions`. Raises OssiaError for what cannot be loaded.
    """
    from ossia import checkpoint
    from ossia.options import LoadOptions, split

    return checkpoint.load(checkpoint.find(path_or_hub_name), *split(options, LoadOptions))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ossia' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
