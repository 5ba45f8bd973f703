"""What to type in place of a command, or a message, that another program would have taken."""

from __future__ import annotations

import os
from typing import Any

from ossia.cli.help import Group
from ossia.errors import OssiaError

_CHAT = "to talk with a model: ossia chat --model NAME"
_DOWNLOAD = (
    "a model is downloaded when it is first used, such as by ossia chat --model Qwen/Qwen3-0.6B"
)

# Commands of ollama, llama.cpp, transformers and vLLM, and what they are called here.
_ELSEWHERE = {
    "run": _CHAT,
    "pull": _DOWNLOAD,
    "download": _DOWNLOAD,
    "push": "to publish a checkpoint folder: hf upload",
    "list": "downloaded models are listed by: hf cache ls",
    "ls": "downloaded models are listed by: hf cache ls",
    "rm": "downloaded models are removed by: hf cache rm",
    "show": "to describe a model: ossia inspect NAME",
    "info": "to describe a model: ossia inspect NAME",
    "complete": "to continue a text: ossia generate TEXT",
    "sft": "to train a checkpoint on conversations: ossia finetune",
    "pretrain": "to train a model from a text: ossia train",
    "benchmark": "to measure a model: ossia bench cpu NAME",
    "convert": "checkpoints are read as they are; to pack experts into MXFP4: ossia quantize",
}


class Commands(Group):
    """The commands, and a hint for some that do not exist."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As click's. Raises OssiaError for a command that is called otherwise here."""
        name = args[0].lower() if args else ""
        if name in _ELSEWHERE:
            raise OssiaError(f"there is no command {args[0]}; {_ELSEWHERE[name]}")
        return super().resolve_command(ctx, args)


def refuse_a_model_as_text(text: str, command: str) -> None:
    """Raise OssiaError for a text that names a model, where none is given by --model."""
    from ossia.families import preset

    if preset(text.rpartition("/")[2]) is not None or os.path.isfile(
        os.path.join(text, "config.json")
    ):
        raise OssiaError(f"{text!r} is a model, not a message: {command} --model {text}")
