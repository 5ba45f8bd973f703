"""openai_harmony as a reference: its vocabulary rebuilt offline, its messages in our types."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from ossia.text import Tokenizer
from ossia.text.chat import Role, ToolDescription
from ossia.text.harmony.messages import (
    Content,
    DeveloperContent,
    Message,
    SystemContent,
    ToolNamespace,
)

O200K_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"


def write_o200k(tokenizer: Tokenizer, file: Path) -> None:
    """The rank file openai_harmony wants: gpt-oss's ids below its control tokens are the ranks."""
    ranks = range(min(tokenizer.control.values()))
    lines = (b"%s %d\n" % (base64.b64encode(tokenizer.token_bytes(rank)), rank) for rank in ranks)
    content = b"".join(lines)
    assert hashlib.sha256(content).hexdigest() == O200K_SHA256
    file.write_bytes(content)


def to_message(data: dict[str, Any]) -> Message:
    """A message as openai_harmony writes it (`Message.to_dict`) in our types."""
    return Message(
        Role(data["role"]),
        content=tuple(_content(content) for content in data["content"]),
        name=data.get("name"),
        channel=data.get("channel"),
        recipient=data.get("recipient"),
        content_type=data.get("content_type"),
    )


def _content(data: dict[str, Any]) -> Content:
    match data["type"]:
        case "text":
            return data["text"]
        case "system_content":
            channels = data.get("channel_config", {})
            effort = data.get("reasoning_effort")
            return SystemContent(
                identity=data.get("model_identity"),
                reasoning_effort=effort and effort.lower(),
                date=data.get("conversation_start_date"),
                knowledge_cutoff=data.get("knowledge_cutoff"),
                channels=tuple(channels.get("valid_channels", ())),
                channel_required=channels.get("channel_required", False),
                tools=_namespaces(data.get("tools")),
            )
        case "developer_content":
            return DeveloperContent(data.get("instructions"), _namespaces(data.get("tools")))
    raise AssertionError(data["type"])


def _namespaces(data: dict[str, Any] | None) -> tuple[ToolNamespace, ...]:
    return tuple(
        ToolNamespace(
            namespace["name"],
            namespace.get("description"),
            tuple(
                ToolDescription(tool["name"], tool["description"], tool.get("parameters"))
                for tool in namespace["tools"]
            ),
        )
        for namespace in (data or {}).values()
    )
