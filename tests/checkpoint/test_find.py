"""find: a folder is itself, a hub name is downloaded or taken from the cache, a mistyped path is
told and never looked up.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import RevisionNotFoundError
from huggingface_hub.utils import filter_repo_objects

from ossia import OssiaError
from ossia.checkpoint import find, packaged_model


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(name: str, **_: object) -> str:
        raise AssertionError(f"{name} was looked up on the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unexpected)


@pytest.fixture
def offline_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def folder(path: Path, *files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for file in files:
        (path / file).write_bytes(b"")
    return path


def test_a_folder_with_a_config_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "run", "config.json", "model.safetensors")
    assert find(path) == find(str(path)) == path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("~/run") == path


def test_a_folder_whose_only_checkpoint_is_original_stands_for_that(tmp_path: Path) -> None:
    original = folder(tmp_path / "original", "config.json", "model.safetensors")
    assert find(tmp_path) == original
    folder(tmp_path, "config.json")  # without weights
    assert find(tmp_path) == original
    folder(tmp_path, "model.safetensors")
    assert find(tmp_path) == tmp_path


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./run", "there is no folder ./run"),
        ("../run/one", "there is no folder ../run/one"),
        ("/no/such/run", "there is no folder /no/such/run"),
        ("~/no such run", "there is no folder ~/no such run"),
        ("~nobody-here/run", "there is no folder ~nobody-here/run"),
        (Path("owner/name"), "there is no folder owner/name"),
        ("qwen3-q8_0.gguf", "there is no file qwen3-q8_0.gguf; besides, GGUF is not supported"),
        ("gpt5", "'gpt5' is neither a folder nor a model's name on the hub"),
        ("a/b/c", "'a/b/c' is neither a folder nor a model's name on the hub"),
        ("owner/name@", "'owner/name@' is neither a folder nor a model's name on the hub"),
        ("owner/", "'owner/' is neither a folder nor a model's name on the hub"),
    ],
)
def test_what_looks_like_a_path_is_never_sent_to_the_hub(name: str | Path, message: str) -> None:
    with pytest.raises(OssiaError, match="^" + message):
        find(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gpt-oss-20", "gpt-oss-20b or gpt-oss-120b"),
        ("GPT2-medum", "gpt2-medium"),
        ("a/b/qwen3-06b", "qwen3-0.6b"),
        ("osia-stdlib", "ossia-stdlib"),
    ],
)
def test_a_misspelt_name_is_told_what_it_may_mean(name: str, meant: str) -> None:
    with pytest.raises(OssiaError, match=rf"did you mean {meant}") as caught:
        find(name)
    assert len(str(caught.value)) < 160


def test_a_file_and_a_folder_without_config_are_told(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(OssiaError, match=r"model\.safetensors is a file; give the folder"):
        find(file)
    with pytest.raises(OssiaError, match=r"holds no config\.json"):
        find(tmp_path)


@pytest.mark.parametrize("name", [None, "ossia-stdlib", "Ossia-Stdlib"])
def test_the_model_inside_the_package_has_a_name(name: str | None, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(name) == packaged_model()
    assert find(name).name == "ossia-stdlib"


def test_a_folder_goes_before_a_packaged_model_of_its_name(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "ossia-stdlib", "config.json", "model.safetensors")
    assert find("ossia-stdlib").resolve() == tmp_path / "ossia-stdlib"


def adapter(path: Path, base: object) -> None:
    folder(path, "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: adapter(p, "Qwen/Qwen3-0.6B"), "ossia merge Qwen/Qwen3-0.6B {} merged"),
        (lambda p: adapter(p, None), "ossia merge BASE_MODEL {} merged"),
        (lambda p: adapter(p, "a; rm -r b"), "ossia merge BASE_MODEL {} merged"),
        (lambda p: folder(p / "training", "run.json"), "--resume --out {}"),
        (lambda p: folder(p / "run", "config.json"), "it holds {}/run"),
        (lambda p: folder(p / "snapshots" / "ab12", "config.json"), "it holds {}/snapshots/ab12"),
        (lambda p: folder(p, "model-Q4.gguf"), "GGUF is not supported"),
        (lambda p: folder(p, "pytorch_model.bin"), "pickles can run code"),
    ],
)
def test_a_folder_that_is_something_else_is_told_what_to_do(
    make: Callable[[Path], object], says: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(OssiaError) as caught:
        find(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path} holds no config.json")
    assert says.format(tmp_path) in str(caught.value)


def test_a_trainers_folder_names_its_newest_checkpoint(tmp_path: Path) -> None:
    for step in (500, 1500, 1000):
        folder(tmp_path / f"checkpoint-{step}", "config.json", "model.safetensors")
    for problem in ("holds no config.json", "holds no weights"):
        says = f"{problem}.* Trainer's folder, whose newest checkpoint is .*-1500$"
        with pytest.raises(OssiaError, match=says):
            find(tmp_path)
        folder(tmp_path, "config.json")


def test_gguf_on_the_hub_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(OssiaError, match=r"^owner/name-GGUF: GGUF is not supported"):
        find("owner/name-GGUF")


def test_a_revision_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise RevisionNotFoundError.__new__(RevisionNotFoundError)  # without the hub's response

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(OssiaError, match=r"^owner/name has no branch, tag or commit v9 on the hub"):
        find("owner/name@v9")


@pytest.mark.parametrize(
    ("name", "looked_up"),
    [
        ("owner/name.pt", ("owner/name.pt", None)),
        ("gpt2", ("openai-community/gpt2", None)),
        ("GPT-OSS-20b", ("openai/gpt-oss-20b", None)),
        ("gpt-oss:20b", ("openai/gpt-oss-20b", None)),
        ("Qwen/Qwen3-0.6B", ("Qwen/Qwen3-0.6B", None)),
        ("Qwen/Qwen3-0.6B@refs/pr/3", ("Qwen/Qwen3-0.6B", "refs/pr/3")),
        ("gpt2@607a30d", ("openai-community/gpt2", "607a30d")),
        ("https://huggingface.co/Qwen/Qwen3-0.6B", ("Qwen/Qwen3-0.6B", None)),
        ("hf.co/Qwen/Qwen3-0.6B/", ("Qwen/Qwen3-0.6B", None)),
    ],
)
def test_the_hub_is_asked_for_safetensors_and_text_only(
    name: str, looked_up: tuple[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = [
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
    ]
    refused = [
        "pytorch_model.bin",
        "rust_model.ot",
        "model.pt",
        "original/model.safetensors",
        "original/config.json",
        "metal/model.bin",
        "onnx/config.json",
        "README.md",
    ]
    asked = []

    def download(
        repo: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        asked.append((repo, revision))
        wanted = filter_repo_objects(
            published + refused, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        return str(folder(tmp_path / "snapshot", *wanted))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = find(name)
    assert asked == [looked_up]
    assert sorted(path.name for path in found.iterdir()) == sorted(published)


def test_offline_and_not_cached_is_one_clear_line(offline_cache: Path) -> None:
    with pytest.raises(OssiaError) as caught:
        find("owner/name")
    assert "owner/name" in str(caught.value)
    assert "hub cannot be reached" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_offline_a_cached_model_is_found(offline_cache: Path) -> None:
    revision = "0" * 40
    repository = offline_cache / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    snapshot = folder(repository / "snapshots" / revision, "config.json", "model.safetensors")
    assert find("owner/name") == snapshot


def test_of_a_hub_model_the_config_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def download(
        name: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        published = ["config.json", "original/config.json", "model.safetensors", "tokenizer.json"]
        wanted = filter_repo_objects(
            published, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        return str(folder(tmp_path / "snapshot", *wanted))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = find("owner/name@v1", config_only=True)
    assert [path.name for path in found.iterdir()] == ["config.json"]
