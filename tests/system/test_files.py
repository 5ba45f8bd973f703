"""Files are written whole or not at all, and JSON that cannot be read is named."""

import json
import os
from pathlib import Path

import pytest

from ossia.errors import OssiaError
from ossia.system.files import (
    check_output,
    read_json,
    write_bytes,
    write_json,
    write_output,
)


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


def test_an_output_gets_the_folders_that_lead_to_it(tmp_path: Path) -> None:
    page = tmp_path / "new" / "deep" / "page.html"
    write_output(page, b"one")
    write_output(page, b"two")
    assert page.read_bytes() == b"two"
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_an_output_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    cases = {
        tmp_path / "folder": "it is a folder; give a file in it",
        tmp_path / "file" / "page.html": "file is a file, not a folder",
    }
    for path, says in cases.items():
        with pytest.raises(OssiaError, match=f"cannot write to {path}: .*{says}"):
            check_output(path)
        with pytest.raises(OssiaError, match=f"cannot write to {path}"):
            write_output(path, b"")


def test_an_output_in_a_folder_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda place, _: place != tmp_path)  # root may everything
    with pytest.raises(OssiaError, match=rf"no permission in the folder {tmp_path}"):
        check_output(tmp_path / "new" / "page.html")
