"""Finds the local checkpoint folder for a path or a name on the Hugging Face hub."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ossia.checkpoint import hub
from ossia.checkpoint.astray import FOREIGN, kind, remedy
from ossia.checkpoint.hub import CONFIG_FILE
from ossia.errors import OssiaError

# Common short names of models, and their names on the hub.
HUB_NAMES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen3-1.7b": "Qwen/Qwen3-1.7B",
    "qwen3-4b": "Qwen/Qwen3-4B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen3-14b": "Qwen/Qwen3-14B",
    "qwen3-32b": "Qwen/Qwen3-32B",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
    "qwen3-235b-a22b": "Qwen/Qwen3-235B-A22B",
    "gpt-oss-20b": "openai/gpt-oss-20b",
    "gpt-oss-120b": "openai/gpt-oss-120b",
}

# Subfolders of hub repositories hold duplicates of the weights (original/, metal/, onnx/). Pickles
# are never downloaded.
WANTED = ["*.json", "*.jinja", "*.safetensors", "merges.txt"]
UNWANTED = ["*/*.json", "*/*.safetensors"]  # what subfolders hold, templates aside

# Files of a checkpoint other than its config and weights.
_TEXT_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)

MORE_TEMPLATES = "additional_chat_templates"

# Models inside the package, each in a folder of its name.
PACKAGED_MODELS = Path(__file__).parent.parent / "models"

_HUB = re.compile(r"(?:https?://)?(?:huggingface\.co|hf\.co)/")  # before a pasted name
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PATH_LIKE = re.compile(r"[./~\\]|[A-Za-z]:")


def find(path_or_hub_name: str | os.PathLike[str] | None, *, config_only: bool = False) -> Path:
    """The folder of a checkpoint: an existing folder, that of a model inside the package (by its
    name; None is the only one), or that of a hub model, downloaded unless it is cached.

    A hub name may end with @ and a branch, tag or commit. If only the `original/` subfolder
    (gpt-oss's own layout) holds weights, it is returned. A name that looks like a path is never
    looked up on the hub. config_only: of a hub model only config.json is downloaded. Raises
    OssiaError if there is no such checkpoint.
    """
    found = _located(path_or_hub_name)
    if isinstance(found, Path):
        return found
    wanted = [CONFIG_FILE] if config_only else WANTED
    return _checkpoint_folder(hub.download(found, wanted, UNWANTED))


@contextmanager
def headers(path_or_hub_name: str | os.PathLike[str] | None) -> Iterator[Path]:
    """As `find`, but of a hub model that is not cached only the config and the headers of weights
    are fetched, into a folder that lasts as long as the block. Its weights read as zeros, so that
    two tied matrices look alike; errors in the block call it by the model's name.
    """
    found = _located(path_or_hub_name)
    if isinstance(found, Path):
        yield found
        return
    with hub.headers(found) as folder:
        try:
            yield _checkpoint_folder(folder)
        except OssiaError as error:
            raise OssiaError(str(error).replace(str(folder), found.name)) from error


def _located(path_or_hub_name: str | os.PathLike[str] | None) -> Path | hub.Name:
    """The folder of a checkpoint on this machine, or the name of one on the hub."""
    if path_or_hub_name is None:
        return packaged_model()
    name = path_or_hub_name
    if isinstance(name, os.PathLike):
        name = os.fspath(name)
    if not isinstance(name, str):
        raise OssiaError(f"a model is named by a folder or a name on the hub, not {name!r}")
    if not name:
        raise OssiaError("the model's name is empty; give a folder or a name on the hub")
    path = Path(os.path.expanduser(name))
    try:
        if path.is_dir():
            return _checkpoint_folder(path)
        if path.exists():
            hint = FOREIGN.get(path.suffix, "give the folder that holds the checkpoint")
            raise OssiaError(f"{name} is a file; {hint}")
    except OSError as error:
        raise OssiaError(f"cannot read {name}: {error.strerror}") from error
    if path.suffix in FOREIGN and not _HUB_NAME.fullmatch(name):
        raise OssiaError(f"there is no file {name}; besides, {FOREIGN[path.suffix]}")
    if not isinstance(path_or_hub_name, str) or _PATH_LIKE.match(name):
        raise OssiaError(f"there is no folder {name}")
    if is_packaged(name):
        return PACKAGED_MODELS / name.lower()
    short, _, revision = _HUB.sub("", name, count=1).rstrip("/").partition("@")
    # ollama writes gpt-oss:20b.
    hub_name = HUB_NAMES.get(short.lower().replace(":", "-"), short)
    if not _HUB_NAME.fullmatch(hub_name) or name.endswith("@"):
        raise OssiaError(
            f"{name!r} is neither a folder nor a model's name on the hub {_meant(name)}"
        )
    return hub.Name(hub_name, revision or None)


def _meant(name: str) -> str:
    """What a name that is none may have been meant to be."""
    known = [*_packaged(), *HUB_NAMES]
    short, _, _ = name.lower().rpartition("/")[2].partition("@")
    if close := difflib.get_close_matches(short, known, n=2, cutoff=0.7):
        return f"(owner/name); did you mean {' or '.join(close)}?"
    return "(owner/name or owner/name@revision, or short: gpt2, qwen3-0.6b, gpt-oss-20b, ...)"


def packaged_model() -> Path:
    """The folder of the model inside the package. Raises OssiaError without one."""
    if not (found := _packaged()):
        raise OssiaError(
            f"there is no model inside this installation ({PACKAGED_MODELS} holds none): "
            "name one by its folder or hub name"
        )
    return PACKAGED_MODELS / found[0]


def is_packaged(name: str) -> bool:
    """Whether this is the name of a model inside the package, in any case of letters."""
    return name.lower() in _packaged()


def _packaged() -> list[str]:
    return sorted(path.parent.name for path in PACKAGED_MODELS.glob(f"*/{CONFIG_FILE}"))


def text_folder(folder: Path) -> Path:
    """The folder of the tokenizer: for gpt-oss's `original/` it is the parent folder."""
    within = folder.name == "original" and not (folder / "tokenizer.json").exists()
    return folder.parent if within else folder


def text_files(folder: Path) -> list[Path]:
    """A checkpoint's tokenizer, chat template and generation defaults, to be copied with models
    derived from it.
    """
    where = text_folder(folder)
    files = [where / name for name in _TEXT_FILES if (where / name).is_file()]
    return [*files, *sorted((where / MORE_TEMPLATES).glob("*.jinja"))]


def _checkpoint_folder(folder: Path) -> Path:
    """The folder itself, or its `original/` if only that holds weights."""

    def complete(place: Path) -> bool:
        return (place / CONFIG_FILE).exists() and any(place.glob("*.safetensors"))

    os.listdir(folder)  # raises for an unreadable folder, where glob is silent
    original = folder / "original"
    if not complete(folder) and complete(original):
        return original
    if not (folder / CONFIG_FILE).exists():
        raise OssiaError(
            f"{folder} holds no {CONFIG_FILE}: not a checkpoint folder{remedy(folder)}"
        )
    if not any(folder.glob("*.safetensors")) and (hint := kind(folder)):
        raise OssiaError(f"{folder} holds no weights (*.safetensors){hint}")
    return folder
