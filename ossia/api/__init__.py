"""LLM: load, generate, chat, stream; the Python surface over engine, checkpoint and text."""

from ossia.api.answer import Ask
from ossia.api.arguments import Sampling
from ossia.api.llm import LLM, Messages
from ossia.api.parts import About
from ossia.api.reply import (
    Completion,
    Finished,
    FinishReason,
    Reply,
    ReplyBuilder,
    TokenLogprob,
    ToolCall,
)
from ossia.api.stream import AsyncStream, Stream
from ossia.api.watch import Watch
from ossia.checkpoint import packaged_model

__all__ = [
    "LLM",
    "About",
    "Ask",
    "AsyncStream",
    "Completion",
    "FinishReason",
    "Finished",
    "Messages",
    "Reply",
    "ReplyBuilder",
    "Sampling",
    "Stream",
    "TokenLogprob",
    "ToolCall",
    "Watch",
    "packaged_model",
]
