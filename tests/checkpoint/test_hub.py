"""Of a hub model only the headers of its weights are fetched: from a stand-in for the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

import ossia
from ossia import OssiaError, checkpoint
from ossia.checkpoint.contents import read_contents
from tests.tiny_checkpoints import deep_gpt_oss, write

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "owner/tiny"


class Hub:
    """Serves a folder as the main branch of a repository, and counts the bytes of each file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sent = folder, dict.fromkeys((f.name for f in folder.iterdir()), 0)
        self.missing = ""
        self.sizes: dict[str, int] = {}  # instead of the files' own
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                place = self.path.partition("?")[0]
                if place == f"/api/models/{NAME}/revision/main":
                    return self.answer(json.dumps({"id": NAME, "sha": COMMIT}).encode())
                if place == f"/api/models/{NAME}/tree/{COMMIT}":
                    return self.answer(json.dumps(hub.tree()).encode())
                if place.startswith(f"/{NAME}/resolve/{COMMIT}/") and not (
                    hub.missing and place.endswith(hub.missing)
                ):
                    return self.file(hub.folder / place.rpartition("/")[2])
                return self.send_error(404)

            def file(self, file: Path) -> None:
                content, status = file.read_bytes(), 200
                if found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", "")):
                    content, status = content[int(found[1]) : int(found[2]) + 1], 206
                if self.command == "GET":
                    hub.sent[file.name] += len(content)
                self.answer(content, status)

            def answer(self, content: bytes, status: int = 200) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hash(content)}"')
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def size(self, file: Path) -> int:
        return self.sizes.get(file.name, file.stat().st_size)

    def tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": file.name, "size": self.size(file), "oid": COMMIT}
            for file in sorted(self.folder.iterdir())
        ]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """With files much larger than their headers."""
    decoder = checkpoint.load(write(tmp_path / "one", *deep_gpt_oss(200, 4)))
    checkpoint.save(decoder, tmp_path / "published", max_shard_bytes=1_000_000)
    (tmp_path / "published" / "tokenizer.json").write_text("{}")
    hub = Hub(tmp_path / "published")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    Thread(target=hub.server.serve_forever, daemon=True).start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def weights(hub: Hub) -> list[str]:
    return [name for name in hub.sent if name.endswith(".safetensors")]


def test_headers_say_what_the_whole_files_say(hub: Hub) -> None:
    whole = read_contents(hub.folder)
    with checkpoint.headers(NAME) as folder:
        found = read_contents(folder)
        assert found.file_bytes == whole.file_bytes
        assert not any(tensor.tensor().any() for tensor in found.stored.values())
    assert not folder.exists()
    assert (found.config, found.layout) == (whole.config, whole.layout)
    assert found.stored.keys() == whole.stored.keys()
    for name, tensor in whole.stored.items():
        other = found.stored[name]
        assert (other.shape, other.dtype, other.offset) == (
            tensor.shape,
            tensor.dtype,
            tensor.offset,
        )
        assert other.file.name == tensor.file.name
    assert len(weights(hub)) > 2
    for name in weights(hub):
        assert 0 < hub.sent[name] < 110_000 < (hub.folder / name).stat().st_size
    assert not hub.sent["tokenizer.json"]


def test_inspect_and_config_download_no_weights(hub: Hub, ossia_command) -> None:
    def record(name: object) -> dict[str, object]:
        done = ossia_command("inspect", name, "--json", "--tensors")
        assert done.code == 0, done.err
        return json.loads(done.out)

    found, expected = record(NAME), record(hub.folder)
    assert str(found.pop("name")).startswith(f"{NAME} (layout")
    assert expected.pop("name")
    assert found == expected
    assert ossia.config(NAME) == ossia.config(hub.folder)
    assert sum(hub.sent.values()) < 500_000 * len(weights(hub))


def test_weights_in_the_cache_are_not_fetched_again(hub: Hub) -> None:
    whole = checkpoint.find(NAME)
    before = dict(hub.sent)
    with checkpoint.headers(NAME) as folder:
        assert folder == whole
    assert hub.sent == before


def test_errors_name_the_model(hub: Hub) -> None:
    config = json.loads((hub.folder / "config.json").read_text())
    changed = {"num_hidden_layers": 5, "layer_types": [*config["layer_types"], "full_attention"]}
    (hub.folder / "config.json").write_text(json.dumps(config | changed))
    says = rf"^{NAME}: tensors do not fit config\.json; 19 missing: .*layers\.4"
    with pytest.raises(OssiaError, match=says), checkpoint.headers(NAME) as folder:
        read_contents(folder)


@pytest.mark.parametrize("fault", ["gone", "not safetensors"])
def test_a_header_that_cannot_be_had_is_one_line(fault: str, hub: Hub, ossia_command) -> None:
    (hub.folder / weights(hub)[0]).write_bytes(b"not safetensors")
    if fault == "gone":
        hub.missing = weights(hub)[0]
    done = ossia_command("inspect", NAME)
    assert done.code == 2
    assert f"error: cannot read the headers of {NAME} on the hub: " in done.err
    assert "Traceback" not in done.err


def test_a_file_far_longer_than_its_tensors_is_refused_in_little_memory(hub: Hub) -> None:
    name = weights(hub)[0]
    hub.sizes[name] = 10**15
    says = rf"headers of {NAME} on the hub: {name}: \d+ bytes beside its tensors"
    with pytest.raises(OssiaError, match=says), checkpoint.headers(NAME):
        pass
