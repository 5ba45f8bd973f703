"""Text on one side, ids on the other: tokenizers, chat formats, replies as events."""

from ossia.text.chat import (
    Chat,
    ChatFormat,
    Effort,
    Messages,
    Parser,
    ToolCall,
    ToolDescription,
)
from ossia.text.constrain import Grammars, read_structured_outputs
from ossia.text.constrain.grammar import plain_grammar
from ossia.text.events import Channel, Event, TextDelta, ToolCallDelta, ToolCallStart
from ossia.text.formats import (
    UnusableFormat,
    end_of_text_ids,
    load_format,
    read_generation_config,
    special_tokens,
)
from ossia.text.harmony.messages import ToolNamespace
from ossia.text.plain import PlainParser
from ossia.text.room import TooLong, at_most
from ossia.text.sandbox import BrokenTemplate
from ossia.text.stop import StopStrings
from ossia.text.tokenizer import StreamDecoder, Tokenizer, load_tokenizer, well_formed

__all__ = [
    "BrokenTemplate",
    "Channel",
    "Chat",
    "ChatFormat",
    "Effort",
    "Event",
    "Grammars",
    "Messages",
    "Parser",
    "PlainParser",
    "StopStrings",
    "StreamDecoder",
    "TextDelta",
    "Tokenizer",
    "TooLong",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallStart",
    "ToolDescription",
    "ToolNamespace",
    "UnusableFormat",
    "at_most",
    "end_of_text_ids",
    "load_format",
    "load_tokenizer",
    "plain_grammar",
    "read_generation_config",
    "read_structured_outputs",
    "special_tokens",
    "well_formed",
]
