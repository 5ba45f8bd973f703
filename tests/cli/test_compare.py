"""`ossia compare`: a table, JSON, Markdown, pages and pictures, and mistakes in one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

import ossia
from ossia.families import PRESETS, to_hf
from ossia.measure import machine as machine_module
from tests.tiny_checkpoints import GPT_OSS_CONFIG

SPREAD = {"median": 2e10, "least": 1e10, "most": 3e10}
MACHINE = {
    "processor": "Some Processor",
    "memory_bytes": 24_000_000_000,
    "threads": 2,
    "read_bytes_per_second": {"all": SPREAD},
    "operations_per_second": {"native bfloat16": SPREAD},
}


def test_a_table_with_the_published_totals(ossia_command) -> None:
    result = ossia_command("compare", "gpt2-xl", "GPT-OSS-20B")
    assert result.code == 0
    for words in ("1,557,611,200", "20,914,757,184", "3,608,307,264", "At most, on H100 SXM"):
        assert words in result.out
    assert re.search(r"with experts in bfloat16 +no experts +7.22\sGB", result.out)
    assert re.search(r"inner width +6,400 +2,880", result.out)


def test_json_holds_figures_lineage_and_setting(ossia_command) -> None:
    arguments = ("--length", "512", "--batch", "1,2", "--hardware", "h200", "--memory", "1GB")
    record = json.loads(ossia_command("compare", "gpt2", "qwen3-0.6b", *arguments, "--json").out)
    assert [model["name"] for model in record["models"]] == ["gpt2", "qwen3-0.6b"]
    assert record["setting"]["context"] == 512
    assert [machine["name"] for machine in record["setting"]["hardware"]] == ["H200 SXM"]
    bounds = record["models"][0]["figures"]["H200 SXM"]
    assert {"decode_1", "decode_2"} < set(bounds)
    assert record["lineage"][0]["facts"] == ["0.1", "none"]
    assert record["models"][1]["figures"]["Memory"]["longest"] is None


def test_markdown(ossia_command) -> None:
    out = ossia_command("compare", "gpt2", "--markdown").out
    assert out.startswith("# gpt2\n")
    assert "| all | 124,439,808 |" in out
    assert "ladder" not in out  # no column without effects


def test_a_page_and_pictures(ossia_command, tmp_path: Path) -> None:
    page, folder = tmp_path / "new" / "page.html", tmp_path / "pictures"
    ladder = Path(__file__).parents[2] / "docs" / "ablation"
    options = ("--html", page, "--svg", folder, "--ladder", ladder)
    assert ossia_command("compare", "gpt2", "gpt-oss-120b", *options).code == 0
    text = page.read_text(encoding="utf-8")
    assert "effect on the ladder" in text
    assert "bits per byte: lower loss" in text
    assert ossia_command("compare", "gpt2", "--html", page).code == 0
    assert "effect on the ladder" not in page.read_text(encoding="utf-8")
    assert text.count("<svg") == len(list(folder.glob("*.svg"))) == 11
    assert (folder / "blocks.svg").read_text(encoding="utf-8").startswith("<svg xmlns=")


def test_the_article(ossia_command, tmp_path: Path) -> None:
    assert ossia_command("compare", "--article", tmp_path / "article").code == 0
    pages = sorted(path.name for path in (tmp_path / "article").glob("*.html"))
    assert len(pages) == 4
    assert "index.html" in pages


def write_config(folder: Path, config: dict) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_with_nothing_but_a_config(ossia_command, tmp_path: Path) -> None:
    folder = write_config(tmp_path / "mine", to_hf(PRESETS["gpt-oss-20b"]))
    record = json.loads(ossia_command("compare", f"{folder}/", "--json").out)
    assert record["models"][0]["name"] == "mine"
    assert record["models"][0]["figures"]["Parameters"]["total"] == 20_914_757_184


def test_of_a_hub_model_only_the_config_is_downloaded(
    ossia_command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []
    folder = write_config(tmp_path / "snapshot", GPT_OSS_CONFIG)

    def download(name: str, **options: object) -> str:
        asked.append((name, options["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    record = json.loads(ossia_command("compare", "owner/some-model", "--json").out)
    assert asked == [("owner/some-model", ["config.json"])]
    assert record["models"][0]["name"] == "some-model"


def test_a_family_that_cannot_be_counted_is_refused_by_name(ossia_command, tmp_path: Path) -> None:
    folder = write_config(tmp_path / "other", {"model_type": "mamba2", "hidden_size": 8})
    result = ossia_command("compare", "gpt2", folder)
    assert result.code == 2
    assert "key 'model_type' is 'mamba2'; supported are gpt2, qwen3" in " ".join(result.err.split())


def test_measured_machines_and_models(ossia_command, tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text(json.dumps(MACHINE))
    decoding = [{"batch": 1, "tokens_per_second": {"median": 20.0}}]
    speed = {"read_bytes_per_second": SPREAD, "decoding": decoding}
    bench = {"model": "gpt2", "machine": MACHINE, "dtype": "float32", "dense": None}
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "one.json").write_text(json.dumps({**bench, "run": {"speed": speed}}))
    result = ossia_command(
        "compare", "gpt2", "--hardware", tmp_path / "machine.json", "--measured", tmp_path / "bench"
    )
    assert result.code == 0
    assert "At most, on Some Processor" in result.out
    assert "gpt2, 1 together: 20.0 tokens/s measured" in result.out


def test_this_machine_is_measured(ossia_command, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = SimpleNamespace(**MACHINE)
    monkeypatch.setattr(machine_module, "describe", lambda: rates)
    monkeypatch.setattr(machine_module, "read_rates", dict)
    monkeypatch.setattr(machine_module, "matrix_rates", dict)
    monkeypatch.setattr(machine_module, "record", lambda *_: MACHINE)
    result = ossia_command("compare", "gpt2", "--hardware", "here")
    assert "At most, on Some Processor" in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name one or more models"),
        (("no-such-model",), "neither a folder nor a model's name on the hub"),
        (("gpt2", "--length", "2000"), "gpt2 supports at most 1,024 tokens"),
        (("gpt2", "--length", "0"), "--length"),
        (("gpt2", "--batch", "0"), "--batch 0: must be numbers"),
        (("gpt2", "--batch", "1,two"), "--batch 1,two"),
        (("gpt2", "--memory", "much"), "'much' is no size"),
        (("gpt2", "--hardware", "abacus"), "--hardware abacus: must be one of h100"),
        (("gpt2", "--ladder", "/nonexistent"), "/nonexistent"),
        (("gpt2", "--measured", "/nonexistent"), "/nonexistent"),
        (("gpt2", "--article", "pages"), "--article writes pages of its own"),
        (list(PRESETS)[:7], "at most 6 models"),
    ],
)
def test_mistakes_are_one_line(ossia_command, arguments, message: str) -> None:
    result = ossia_command("compare", *arguments)
    assert result.code == 2
    assert message in " ".join(result.err.split())
    assert "Traceback" not in result.err


def test_a_preset_is_compared_without_torch(tmp_path: Path) -> None:
    """Which would take longer to import than the comparison."""
    code = (
        "import sys; from ossia.cli.main import main; "
        f"main(['compare', 'gpt-oss-120b', '--html', {str(tmp_path / 'page.html')!r}]); "
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(ossia.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, check=False
    )
    assert found.returncode == 0, found.stderr
