"""A client that costs little beside a server on the same processors: a connection for each request,
and when the parts of a stream came.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

_DATA = b"data: "


class Refused(Exception):
    """The server answered with another status than 200."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}: {body.decode('utf-8', 'replace')[:300]}")
        self.status = status


@dataclass
class Timed:
    """When each event of a stream came, in seconds since the request was sent."""

    arrivals: list[float] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    hung_up: bool = False


async def stream(
    port: int, path: str, body: dict[str, Any], *, most: int | None = None, keep: bool = False
) -> Timed:
    """POST a body whose answer is a stream of server-sent events, and read it: `most` events, then
    hang up. `keep` the events, or only their times. Raises Refused, and OSError if the connection
    ends before the stream.
    """
    timed, began = Timed(), time.perf_counter()
    async with events(port, path, body) as told:
        async for data in told:
            timed.arrivals.append(time.perf_counter() - began)
            if keep:
                timed.events.append(json.loads(data))
            if most is not None and len(timed.arrivals) >= most:
                timed.hung_up = True
                break
    return timed


@asynccontextmanager
async def events(port: int, path: str, body: dict[str, Any]) -> AsyncIterator[AsyncIterator[bytes]]:
    """POST a body, and read the data of each event of the stream that answers it, as JSON. Raises
    as `stream` does.
    """
    async with _answer(port, path, body) as lines:
        yield _data(lines)


async def _data(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for line in lines:
        if line.startswith(_DATA):
            data = line[len(_DATA) :].strip()
            if data == b"[DONE]":
                return
            yield data


async def post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """POST a body, and return the JSON object that answers it. Raises Refused, and OSError if the
    connection ends before its end.
    """
    async with _answer(port, path, body) as lines:
        whole = b"\n".join([line async for line in lines])
    try:
        return json.loads(whole)
    except ValueError as error:
        raise ConnectionError("the answer was cut short") from error


@asynccontextmanager
async def _answer(
    port: int, path: str, body: dict[str, Any]
) -> AsyncIterator[AsyncIterator[bytes]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + data)
        status = int((await _line(reader)).split()[1])
        chunked = False
        while (line := await _line(reader)).strip():
            chunked |= line.lower().startswith(b"transfer-encoding: chunked")
        if status != 200:
            raise Refused(status, await reader.read(4096))
        yield _lines(reader, chunked)
    finally:
        writer.close()


async def _line(reader: asyncio.StreamReader) -> bytes:
    """The next line. Raises ConnectionError where it is cut short."""
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("the connection ended before the answer")
    return line


async def _lines(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    """The lines of a body, whatever chunks it comes in."""
    rest = b""
    while piece := await (_chunk(reader) if chunked else reader.read(1 << 16)):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    """The next chunk; empty at the end. Raises ConnectionError where it is cut short."""
    size = await _line(reader)
    piece = await reader.readexactly(int(size, 16))
    await reader.readline()
    return piece
