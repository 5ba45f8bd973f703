"""Files are written whole or not at all, and JSON that cannot be read is named."""

import json
import os
from pathlib import Path

import pytest

from ossia.errors import OssiaError
from ossia.system.files import read_json, write_bytes, write_json


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "talk.json"
    file.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as broken:
            broken.setattr(os, function, full)
            with pytest.raises(OSError, match="No space left"):
                write_bytes(file, b"new")
        assert file.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [file]
    write_bytes(file, b"new")
    assert file.read_bytes() == b"new"


def test_json_is_readable_text_and_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    value = {"text": "Grüße 世 \ud83d", "numbers": [1, 0.5, None]}  # a lone surrogate too
    write_json(file, value)
    assert "Grüße 世" in file.read_text(encoding="utf-8")
    assert json.loads(file.read_bytes()) == value
    assert read_json(file) == value


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[]", "is not a JSON object"),
        (b'{"a": {"b": 1, "b": 2}}', "b occurs twice"),
        (None, "No such file"),
    ],
)
def test_json_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OssiaError, match=complaint) as error:
        read_json(file)
    assert str(file) in str(error.value)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(file) == {"a": 1}
