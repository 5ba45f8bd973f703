"""Models on the Hugging Face hub: downloaded into its cache, or only the headers of weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ossia.checkpoint.astray import FOREIGN
from ossia.checkpoint.files import INDEX_FILE, MAX_HEADER, weight_files
from ossia.errors import OssiaError, brief

CONFIG_FILE = "config.json"

_AT_ONCE = 8  # headers that are fetched at a time


class Name(NamedTuple):
    """A repository (owner/name), and a branch, tag or commit; None is the main branch."""

    name: str
    revision: str | None


def download(model: Name, wanted: Sequence[str], unwanted: Sequence[str] = ()) -> Path:
    """The folder of the cache with the files of a model that match `wanted` and not `unwanted`,
    named by the commit. Raises OssiaError if there is no such model, or none can be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, revision = model
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=[*wanted], ignore_patterns=[*unwanted]
        )
    except GatedRepoError as error:
        raise OssiaError(
            f"{name} is gated on the hub: ask for access there, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise OssiaError(
            f"{name} is neither a folder here nor a public model on the hub"
        ) from error
    except RevisionNotFoundError as error:
        raise OssiaError(f"{name} has no branch, tag or commit {revision} on the hub") from error
    except HFValidationError as error:
        raise OssiaError(f"{name} is no folder here, and no name the hub accepts") from error
    except LocalEntryNotFoundError as error:
        raise OssiaError(
            f"{name} is neither a folder here nor in the hub's cache, and the hub cannot be "
            "reached: download it while online, or give a folder"
        ) from error
    except OSError as error:
        reason = str(error).strip().partition("\n")[0]
        raise OssiaError(f"cannot download {name} from the hub: {reason}") from error
    if "gguf" in name.lower() and not (Path(folder) / CONFIG_FILE).is_file():
        raise OssiaError(f"{name}: {FOREIGN['.gguf']}, under the name that it was made from")
    return Path(folder)


@contextmanager
def headers(model: Name) -> Iterator[Path]:
    """A folder with a model's config and files of weights that end after their headers in a hole as
    large as the data, for as long as the block runs; or the cache's, if the weights are there.
    """
    cached = download(model, [CONFIG_FILE, INDEX_FILE])
    if _holds_weights(cached):
        yield cached
        return
    with TemporaryDirectory(prefix="ossia-") as made:
        folder = Path(made) / model.name  # as warnings show it
        folder.mkdir(parents=True)
        for name in (CONFIG_FILE, INDEX_FILE):
            if (cached / name).is_file():
                (folder / name).symlink_to(cached / name)
        try:
            _fetch(Name(model.name, cached.name), folder)
        except Exception as error:  # of whatever library the hub's is built on
            raise OssiaError(
                f"cannot read the headers of {model.name} on the hub: {brief(error)}"
            ) from error
        yield folder


def _holds_weights(folder: Path) -> bool:
    try:
        return bool(weight_files(folder))
    except OssiaError:
        return False


def _fetch(model: Name, folder: Path) -> None:
    """Write the headers of a model's files of weights into a folder."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    sizes = {
        file.path: file.size
        for file in api.list_repo_tree(model.name, revision=model.revision)
        if isinstance(file, RepoFile) and file.path.endswith(".safetensors")
    }

    def fetch(name: str) -> None:
        found = api.parse_safetensors_file_metadata(model.name, name, revision=model.revision)
        tensors = {
            key: {"dtype": x.dtype, "shape": x.shape, "data_offsets": x.data_offsets}
            for key, x in found.tensors.items()
        }
        text = json.dumps(tensors, ensure_ascii=False, separators=(",", ":")).encode()
        end = max((x.data_offsets[1] for x in found.tensors.values()), default=0)
        length = sizes[name] - end - 8  # the file's own also holds metadata
        if length > MAX_HEADER:
            raise OssiaError(f"{name}: {length} bytes beside its tensors; not a safetensors file?")
        text = text.ljust(length)
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(len(text) + 8 + end)

    with ThreadPoolExecutor(_AT_ONCE) as fetching:
        list(fetching.map(fetch, sizes))
