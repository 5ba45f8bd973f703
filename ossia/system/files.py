"""Atomic writes of files and folders, and JSON objects read with clear errors."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import json
import os
import re
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ossia.errors import OssiaError, shortened
from ossia.system.claims import lock

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_LEFT = re.compile(r"\..*\.[0-9a-f]{8}\.saving")  # what a killed process was writing

# Far above any real file except a tokenizer's. Python's values can take 25 times a text's bytes.
MAX_JSON = 16 << 20


@contextlib.contextmanager
def replacing(folder: Path, stale: re.Pattern[str] | None = None) -> Iterator[Path]:
    """A hidden new folder beside `folder` that replaces it if the block succeeds and is removed if
    it fails.

    The old folder's files are carried over, by hard links if the file system supports them, except
    those whose names match `stale` and those the block wrote. Mapped files stay valid: old files
    are unlinked, never written to. Raises OssiaError if the folder cannot be replaced, OSError if
    the system refuses an operation.
    """
    folder = folder.resolve()
    _refuse_file(folder)
    if os.path.ismount(folder):
        raise OssiaError(
            f"{folder} is a mount point and cannot be replaced; save to a folder inside it"
        )
    with _staging(folder) as staging:
        yield staging
        if folder.exists():
            _bring_along(folder, staging, stale)
        sync_folder(staging)
        _take_place(staging, folder)
        sync_folder(folder.parent)


@contextlib.contextmanager
def creating(folder: Path) -> Iterator[Path]:
    """A hidden new folder that becomes `folder` if the block succeeds and is removed if it fails.

    Raises OssiaError for a place that `check_new_folder` refuses, or that something came to while
    the block ran; OSError if the system refuses an operation.
    """
    check_new_folder(folder)
    folder = folder.resolve()
    _refuse_file(folder)
    with _staging(folder) as staging:
        new = staging / folder.name  # inside, so that the block may replace it
        new.mkdir()
        try:
            yield new
        except OssiaError as error:  # says it of the folder that the caller knows
            raise OssiaError(str(error).replace(str(new), str(folder))) from error
        sync_folder(new)
        _keeping_work_folder(lambda: _fill(new, folder), folder)
        sync_folder(folder.parent)


def _refuse_file(folder: Path) -> None:
    place = next(place for place in (folder, *folder.parents) if place.exists())
    if not place.is_dir():
        raise OssiaError(f"{place} is a file; give a folder to save into")


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A hidden new folder beside `folder`, removed at the end of the block if it is still there.
    Those that killed processes left are removed at its beginning.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    left = re.compile(re.escape(f".{folder.name}.") + r"[0-9a-f]{8}\.saving")
    with contextlib.suppress(OSError):  # of a parent that cannot be read
        for other in list(folder.parent.iterdir()):
            if left.fullmatch(other.name):
                _remove_if_left(other)
    staging = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.saving")
    # Locked before it has the name by which others look for it.
    unnamed = staging.with_suffix(".new")
    unnamed.mkdir()
    descriptor = _open_folder(unnamed)
    try:
        if descriptor is not None:
            lock(descriptor)
        unnamed.rename(staging)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _remove_if_left(staging: Path) -> None:
    """Remove a staging folder unless a living process has locked it."""
    try:
        descriptor = _open_folder(staging)
    except OSError:
        return
    if descriptor is None:
        return
    if lock(descriptor):
        shutil.rmtree(staging, ignore_errors=True)
    os.close(descriptor)


def _open_folder(folder: Path) -> int | None:
    return os.open(folder, os.O_RDONLY) if os.name == "posix" else None  # elsewhere it cannot be


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn an OSError within the block into an OssiaError that names `place`."""
    try:
        yield
    except OSError as error:
        raise OssiaError(f"cannot write to {place}: {error.strerror or error}") from error


def check_output(path: Path) -> None:
    """Raise OssiaError for a file that `write_output` could not write: before work, not after."""
    if path.is_dir():
        raise OssiaError(f"cannot write to {path}: it is a folder; give a file in it")
    place = next(place for place in path.absolute().parents if place.exists())
    if not place.is_dir():
        raise OssiaError(f"cannot write to {path}: {place} is a file, not a folder")
    if not os.access(place, os.W_OK):
        raise OssiaError(f"cannot write to {path}: no permission in the folder {place}")


def write_output(path: Path, content: bytes) -> None:
    """Write a file that a user named, atomically, with the folders that lead to it. Raises
    OssiaError if it cannot be written.
    """
    check_output(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)


def check_new_folder(folder: Path) -> None:
    """Raise OssiaError for a folder with contents, or one that `replacing` would refuse later."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OssiaError(f"{folder} exists and is not an empty folder; give a new one")
    parent = folder.resolve().parent
    if folder.exists() and (os.path.ismount(folder) or not os.access(parent, os.W_OK)):
        raise OssiaError(f"{folder} cannot be replaced; give a new folder inside it")


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, if the system supports it."""
    descriptor = _open_folder(folder)
    if descriptor is None:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, chunks: Iterable[Any]) -> None:
    """Write bytes-like chunks to a new file and flush them to disk."""
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: its path holds either the old content or the new."""
    staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}.saving")
    try:
        write_file(staging, [content])
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON in UTF-8, as `write_bytes` does."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """A value as indented JSON in UTF-8."""
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    # Only lone surrogates cannot be encoded; their replacement is JSON's own escape.
    return text.encode("utf-8", "backslashreplace")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises OssiaError if the file is absent, unreadable, too large,
    not JSON or not an object.
    """
    try:
        check_regular(path)
        size = path.stat().st_size
        if size > MAX_JSON:
            raise OssiaError(f"{path} has {size:,} bytes; at most {MAX_JSON:,} are read")
        return json_object(path.read_bytes(), str(path))
    except OSError as error:
        raise OssiaError(f"cannot read {path}: {error.strerror}") from error


def check_regular(path: Path) -> None:
    """Raise OssiaError for what is no file, such as a pipe, which could block for ever. Raises
    OSError if there is nothing.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # reading a folder is an error by itself
        raise OssiaError(f"{path} is not a file but a pipe, a socket or a device")


def json_object(data: bytes, source: str) -> dict[str, Any]:
    """The object in a JSON text. Raises OssiaError, which begins with `source`, for text that is
    not JSON, not an object, or repeats a key.
    """

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise OssiaError(f"{source}: {shortened(repeated)} occurs twice")
        return result

    collecting = gc.isenabled()
    gc.disable()  # it would look for cycles again and again, among values that have none
    try:
        value = json.loads(data, object_pairs_hook=without_repeats)
    except OssiaError:
        raise
    except (ValueError, RecursionError) as error:
        raise OssiaError(f"{source} is not valid JSON: {shortened(str(error), 160)}") from error
    finally:
        if collecting:
            gc.enable()
    if not isinstance(value, dict):
        raise OssiaError(f"{source} is not a JSON object")
    return value


def _bring_along(old: Path, new: Path, stale: re.Pattern[str] | None) -> None:
    def skipped(place: str, names: list[str]) -> set[str]:
        if Path(place) != old:
            return set()
        return {
            name
            for name in names
            if (stale is not None and stale.fullmatch(name))
            or _LEFT.fullmatch(name)
            or (new / name).exists()
        }

    shutil.copytree(
        old, new, symlinks=True, ignore=skipped, copy_function=_link, dirs_exist_ok=True
    )


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links, or with limits on them
        shutil.copy2(source, target)


def _take_place(new: Path, folder: Path) -> None:
    """Replace `folder` by `new`. The old folder, if any, is afterwards at `new` or deleted."""
    if not folder.exists():
        new.rename(folder)
        return
    _keeping_work_folder(lambda: _swap(new, folder), folder)


def _swap(new: Path, folder: Path) -> None:
    if not _exchange(new, folder):
        retired = new.with_suffix(".old")
        folder.rename(retired)
        try:
            new.rename(folder)
        except OSError:
            retired.rename(folder)
            raise
        shutil.rmtree(retired, ignore_errors=True)


def _fill(new: Path, folder: Path) -> None:
    """Rename to a name that nothing has, or an empty folder."""
    try:
        new.rename(folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        raise OssiaError(
            f"{folder} was written by another process meanwhile; give a new folder"
        ) from error


def _keeping_work_folder(replace: Callable[[], None], folder: Path) -> None:
    """Replace a folder, and stay in its path if this process works in it: it would otherwise stay
    in the removed folder.
    """
    working = _working_folder()
    replace()
    if working is not None and working.is_relative_to(folder):
        os.chdir(working)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically; False if the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def _working_folder() -> Path | None:
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None
