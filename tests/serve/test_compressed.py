"""Compressed bodies: read as what they hold, up to the size that the server takes."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable

import pytest

from tests.serve.conftest import ANSWER

zstandard = pytest.importorskip("zstandard")

CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "é" * 99}]}).encode()


def raw_deflate(data: bytes) -> bytes:
    return zlib.compress(data, wbits=-15)


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "its old name": ("x-gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without a header": ("deflate", raw_deflate),
    "zstd": ("zstd", zstandard.compress),
    "none": ("identity", bytes),
}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_compressed_body_is_what_it_holds(serve, encoder):
    name, compress = ENCODERS[encoder]
    served = serve(ANSWER)
    status, answer = served.post(CHAT, compress(BODY), **{"Content-Encoding": name})
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "Forty-two, é!")
    assert "é" * 99 in served.prompt()


@pytest.mark.parametrize("encoder", ["gzip", "deflate", "deflate without a header", "zstd"])
@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-1], lambda data: data + b"{}", lambda _: b"{}", lambda _: b""],
    ids=["cut off", "goes on", "not compressed", "empty"],
)
def test_a_body_that_cannot_be_decompressed_is_named(serve, encoder, change):
    name, compress = ENCODERS[encoder]
    status, answer = serve().post(CHAT, change(compress(BODY)), **{"Content-Encoding": name})
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert f"the body is not {name}" in answer["error"]["message"]


BOMBS = {
    "gzip": lambda: zlib.compressobj(wbits=31),
    "deflate": lambda: zlib.compressobj(wbits=15),
    "zstd": lambda: zstandard.ZstdCompressor().compressobj(),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_without_its_memory(serve, name):
    served = serve(max_body=2**20)
    compressor, zeros = BOMBS[name](), bytes(2**20)
    bomb = b"".join(compressor.compress(zeros) for _ in range(256)) + compressor.flush()
    assert len(bomb) < 2**20
    tracemalloc.start()
    try:
        status, answer = served.post(CHAT, bomb, **{"Content-Encoding": name})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert status == 413
    assert "decompressed" in answer["error"]["message"]
    assert peak < 2**25  # of 2**28 bytes


def test_the_size_that_is_taken_is_that_of_the_decompressed_body(serve):
    served = serve(ANSWER, max_body=len(BODY))
    headers = {"Content-Encoding": "gzip"}
    assert served.post(CHAT, gzip.compress(BODY), **headers)[0] == 200
    assert served.post(CHAT, gzip.compress(BODY + b" "), **headers)[0] == 413


@pytest.mark.parametrize("name", ["br", "compress", "gzip, zstd"])
def test_another_encoding_is_refused_by_name(serve, name):
    connection = serve().connect()
    connection.request("POST", CHAT, BODY, {"Content-Encoding": name})
    response = connection.getresponse()
    assert response.status == 415
    assert response.headers["Accept-Encoding"] == "gzip, deflate, zstd"
    assert repr(name) in json.loads(response.read())["error"]["message"]
