"""`ossia bench gpu`: the table, the JSON, and one line where there is no card."""

import json

import pytest

from ossia.measure.gpu import suite
from ossia.measure.gpu.cases import Case, Measure, Side
from ossia.measure.gpu.parts import Told
from ossia.system import gpu
from tests.measure.test_gpu import LIMITS


@pytest.fixture
def found(monkeypatch) -> suite.Found:
    """What a run finds, without its processes."""
    decode, load = Case("gpt-oss-20b", Measure.DECODE, 1, 8), Case("gpt-oss-20b", Measure.LOAD)
    told = [
        Told(decode, Side.OSSIA, 900.0),
        Told(decode, Side.PEER, 30.0),
        Told(load, Side.OSSIA, why="the card's memory ran out"),
    ]
    found = suite.Found(LIMITS, {(each.case, each.side): each for each in told}, 149.6)
    monkeypatch.setattr(suite, "run", lambda *_: found)
    return found


@pytest.mark.usefixtures("found")
def test_the_table_and_the_json_are_of_one_run(ossia_command, tmp_path) -> None:
    file = tmp_path / "gpu.json"
    result = ossia_command("bench", "gpu", "--rehearse", "--out", file, "--folder", tmp_path)
    assert result.code == 0, result.err
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert "card a card" in lines
    assert "free of it 90 GB" in lines
    assert "reads 4,000 GB/s" in lines
    assert "measured in 150 s" in lines
    [row] = [line for line in lines if line.startswith("decode, 1 x 8 900 ")]
    assert row.endswith(" 30 30.0")
    assert "gpt-oss-20b, ossia: load, s: the card's memory ran out" in lines
    record = json.loads(file.read_text())
    assert len(record["rows"]) == 22
    [load] = [row for row in record["rows"] if row["measure"] == "load"]
    assert (load["ossia"], load["ossia_why"]) == (None, "the card's memory ran out")
    assert list(tmp_path.iterdir()) == [file]  # the weights are gone


@pytest.mark.usefixtures("found")
def test_the_cpu_is_measured_in_the_same_run(ossia_command, monkeypatch) -> None:
    for module in ("machine", "model"):
        monkeypatch.setattr(f"ossia.measure.{module}.BUFFER_BYTES", 1 << 20)
    result = ossia_command("bench", "gpu", "--rehearse", "--cpu", "--json")
    assert result.code == 0, result.err
    cpu = json.loads(result.out)["cpu"]
    assert cpu["run"]["speed"]["prefill"][0]["tokens"] == 512
    assert cpu["run"]["speed"]["decoding"][0]["share"]["median"] > 0


def test_without_a_card_there_is_one_line(ossia_command, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(gpu, "available", lambda: False)
    result = ossia_command("bench", "gpu", "--out", tmp_path / "gpu.json")
    assert (result.code, result.out) == (2, "")
    assert len(result.err.strip().splitlines()) == 1
    assert "--rehearse" in result.err
    assert not (tmp_path / "gpu.json").exists()
    nowhere = ossia_command("bench", "gpu", "--rehearse", "--folder", tmp_path / "none")
    assert nowhere.code == 2
    assert f"cannot write to {tmp_path / 'none'}" in nowhere.err
