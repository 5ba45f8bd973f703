"""Compressed bodies of requests: gzip, deflate and zstd, read up to a size and no further."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import zstandard
from starlette.exceptions import HTTPException

from ossia.serve.errors import ApiError
from ossia.system.memory import format_size

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

MOST_WINDOW = 2**23  # bytes that a zstd decoder may be made to hold (RFC 9659)
_SLICE = 256  # compressed bytes at a time: a block of 4 can stand for 128 KiB


class TooLarge(Exception):
    """The body would be larger than it may be."""


def encoding(header: bytes) -> str | None:
    """The encoding that a Content-Encoding header names; None for none. Raises ApiError for one
    that is not read.
    """
    name = header.decode("latin-1").strip().lower().removeprefix("x-")
    if name in ("", "identity"):
        return None
    if name not in _DECODERS:
        raise ApiError(
            415,
            f"Content-Encoding: {name[:40]!r} is not read; send gzip, deflate, zstd or no encoding",
            code="unsupported_content_encoding",
        )
    return name


def decoded(receive: Receive, encoding: str, most: int) -> Receive:
    """`receive`, with the whole body decoded in its first message. `most`: the most bytes of the
    decoded body; a larger one is refused by 413, without being held in memory.
    """
    whole: bytes | None = None

    async def decoding() -> Message:
        nonlocal whole
        if whole is not None:
            return await receive()
        parts, more = [], True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return message
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        whole = await asyncio.to_thread(_decode, b"".join(parts), encoding, most)
        return {"type": "http.request", "body": whole, "more_body": False}

    return decoding


def _decode(data: bytes, encoding: str, most: int) -> bytes:
    try:
        return _DECODERS[encoding](data, most)
    except TooLarge:
        raise HTTPException(
            413,
            f"the body is larger than the {format_size(most)} that this server takes, once it is "
            "decompressed",
        ) from None
    except (zlib.error, zstandard.ZstdError, EOFError) as error:
        raise HTTPException(400, f"the body is not {encoding}: {error}") from error


def _gzip(data: bytes, most: int) -> bytes:
    return _inflate(data, most, wbits=31)


def _deflate(data: bytes, most: int) -> bytes:
    """With zlib's header, as the standard says, or without, as some clients send it."""
    try:
        return _inflate(data, most, wbits=15)
    except zlib.error:
        return _inflate(data, most, wbits=-15)


def _inflate(data: bytes, most: int, wbits: int) -> bytes:
    decoder = zlib.decompressobj(wbits)
    whole = decoder.decompress(data, most + 1)
    if len(whole) > most:
        raise TooLarge
    _check_end(decoder.eof, decoder.unused_data)
    return whole


def _zstd(data: bytes, most: int) -> bytes:
    whole = bytearray()
    decoder = zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW).decompressobj()
    for begin in range(0, len(data), _SLICE):
        whole += decoder.decompress(data[begin : begin + _SLICE])
        if len(whole) > most:
            raise TooLarge
        if decoder.eof:
            _check_end(True, decoder.unused_data + data[begin + _SLICE :])
            break
    _check_end(decoder.eof, b"")
    return bytes(whole)


def _check_end(ended: bool, after: bytes) -> None:
    """One member or frame is the whole body: thousands of empty ones would only take time."""
    if not ended or after:
        raise EOFError("it goes on after its end" if after else "it ends too early")


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}
