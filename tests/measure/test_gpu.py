"""`ossia bench gpu`: every row's code on the CPU with tiny shapes; processes that fail or hang."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ossia.engine import Engine
from ossia.errors import OssiaError
from ossia.families import PRESETS
from ossia.insight.counts import bytes_per_token, kv_bytes, training_flops
from ossia.insight.hardware import Hardware
from ossia.measure.gpu import __main__ as process
from ossia.measure.gpu import limits, report, served, suite
from ossia.measure.gpu.cases import FULL, REHEARSAL, Case, Measure, Side
from ossia.measure.gpu.parts import Kind, Part, Teller, Told, parts
from ossia.measure.random_weights import random_decoder
from ossia.options import EngineOptions
from ossia.system import gpu

CPU = torch.device("cpu")
LIMITS = {
    "card": "a card",
    "memory_bytes": 10**11,
    "free_bytes": 9 * 10**10,
    "read_bytes_per_second": 4e12,
    "operations_per_second": 8e14,
    "copy_bytes_per_second": 5e10,
    "versions": {"torch": "2"},
    "failed": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The checkpoint that a suite writes."""
    folder = tmp_path_factory.mktemp("bench") / "weights"
    process.run(Part(Kind.FILES, REHEARSAL.stored.name), REHEARSAL, CPU, 0.0, folder)
    return folder


@pytest.mark.parametrize("part", parts(REHEARSAL), ids=str)
def test_every_row_is_measured(part: Part, folder: Path, capsys) -> None:
    if part.side is Side.PEER:
        pytest.importorskip("transformers")
    process.run(part, REHEARSAL, CPU, time.monotonic() + 600, folder)
    found = [Told.of(json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    assert [told.case for told in found] == part.cases(REHEARSAL)
    for told in found:
        assert told.why == ""
        assert told.side is part.side
        assert told.value is not None
        if told.case.unit != "GB":  # what the process had allocated already may serve
            assert told.value > 0


def test_the_full_suite_has_the_rows_that_were_asked_for() -> None:
    cases = {case for part in parts(FULL) for case in part.cases(FULL)}
    for batch in (1, 8, 64, 256):
        for context in (128, 8192, 65_536):
            assert Case("gpt-oss-20b", Measure.DECODE, batch, context) in cases
    for length in (512, 2048, 8192, 32_768):
        assert Case("gpt-oss-20b", Measure.PREFILL, 1, length) in cases
    assert Case("gpt2", Measure.TRAINING, 32, 1024) in cases
    for model in FULL.served:
        assert model.config == PRESETS[model.name]
        for _, context in model.decodes:
            assert context + 100 < model.config.context_length


def test_texts_that_are_begun_have_pages_of_their_own_and_leave_none() -> None:
    model = REHEARSAL.stored
    options = EngineOptions(kv_memory=1 << 20, max_batch=3, prefill_chunk=16)
    engine = Engine(random_decoder(model.config), options)
    served._fill(engine)
    context, size = 40, engine.kv.page_size
    steps = 2 * size
    ids = served._begin(engine, batch=3, context=context, steps=steps)
    running = engine.scheduler.running
    assert [sequence.text.columns for sequence in running] == [-(-context // size)] * 3
    for i, store in enumerate(engine.kv.stores):
        held = [page for sequence in running for page in sequence.text.pages[i] if page]
        assert len(held) == len(set(held))
        window = store.kind.window
        least = 40 if window is None else window
        assert len(held) >= 3 * (least // engine.kv.page_size)
    assert [sequence.pending for sequence in running] == [1, 1, 1]
    outputs = engine.step()
    assert sorted(output.request_id for output in outputs) == ids
    assert [sequence.computed for sequence in running] == [40, 40, 40]
    for _ in range(steps - 1):  # pages are granted as they are needed, as in a served request
        assert len(engine.step()) == 3
    assert [sequence.text.columns for sequence in running] == [
        -(-(context + steps - 1) // size)
    ] * 3
    for id in ids:
        engine.abort(id)
    assert all(store.counts.used == 0 for store in engine.kv.stores)


def test_weights_that_are_made_in_memory_move_to_a_device() -> None:
    decoder = random_decoder(REHEARSAL.stored.config, copy=False).to("meta")
    assert all(weight.is_contiguous() for weight in decoder.state_dict().values())
    assert {weight.device.type for weight in decoder.state_dict().values()} == {"meta"}
    assert decoder.device.type == "meta"


def test_contexts_beyond_the_memory_say_how_many_fit() -> None:
    decoder = random_decoder(REHEARSAL.stored.config)
    engine = Engine(decoder, EngineOptions(kv_memory=100_000, max_batch=64, prefix_cache=False))
    with pytest.raises(OssiaError, match=r"holds the keys and values of \d+ such texts"):
        served._begin(engine, batch=64, context=200, steps=5)
    assert all(store.counts.used == 0 for store in engine.kv.stores)


def test_a_failure_is_that_rows_alone() -> None:
    part = Part(Kind.SERVED, "qwen3-8b")
    found: list[Told] = []
    teller = Teller(part, REHEARSAL, CPU, time.monotonic() + 100, found.append)
    first, second, third, *rest = part.cases(REHEARSAL)

    def fails() -> float:
        raise ValueError("no\nluck")

    def is_too_large() -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    teller.measure(first, fails)
    teller.measure(second, is_too_large)
    teller.measure(third, lambda: 2.0)
    teller.measure(rest[0], lambda: 3.0, needs=200)
    teller.give_up(RuntimeError("the card fell off the bus"))
    assert [told.value for told in found[:4]] == [None, None, 2.0, None]
    assert found[0].why == "no luck"
    assert found[1].why == "the card's memory ran out"
    assert found[3].why == "skipped: the time was up"
    assert [told.why for told in found[4:]] == ["the card fell off the bus"] * (len(rest) - 1)


def scripted(programs: dict[str, str]) -> suite.Command:
    """Parts that run a program by the part's name; others end at once."""

    def build(part: Part, _: float) -> list[str]:
        return [sys.executable, "-S", "-c", programs.get(str(part), "")]

    return build


def test_processes_that_hang_crash_or_babble_cost_their_own_rows(monkeypatch) -> None:
    monkeypatch.setattr(suite, "_LEAST_SECONDS", 0.1)
    hangs = "served gpt-oss-20b"

    def seconds(part: Part) -> float:
        return 3 if str(part) == hangs else 600

    found_parts = [replace(part, seconds=seconds(part)) for part in parts(REHEARSAL)]
    monkeypatch.setattr(suite, "parts", lambda _: found_parts)
    case = Case("gpt2", Measure.TRAINING, 2, 16)
    told = Told(case, Side.OSSIA, 100.0).to_json()
    row = Told(Case("qwen3-8b", Measure.PREFILL, 1, 8), Side.OSSIA, 7.0).to_json()
    programs = {
        "limits": f"print({json.dumps(LIMITS)!r})",
        "files gpt-oss-20b": "import time; time.sleep(600)",
        "trained gpt2": f"print('a library says'); print('[1]'); print({json.dumps(told)!r})",
        hangs: "import time; time.sleep(600)",
        "trained gpt2 transformers": "import sys; sys.exit('CUDA error: no kernel image')",
        "served qwen3-8b": f"import os; print({json.dumps(row)!r}, flush=True); os.abort()",
    }
    found = suite.run(REHEARSAL, 3600.0, scripted(programs))
    rows = {row.case: row for row in report.rows(found, REHEARSAL)}
    assert rows[case].ours == Told(case, Side.OSSIA, 100.0)
    peer = rows[case].peer
    assert peer is not None
    assert peer.why == "its process ended with exit code 1: CUDA error: no kernel image"
    hung = rows[Case("gpt-oss-20b", Measure.LOAD)].ours
    assert hung is not None
    assert hung.why == "skipped: it took too long"
    kept, lost = (rows[Case("qwen3-8b", Measure.PREFILL, 1, n)].ours for n in (8, 20))
    assert kept is not None
    assert kept.value == 7.0
    assert lost is not None
    assert lost.why == "its process ended with exit code -6"
    remarks = report.remarks(found, REHEARSAL)
    assert any(line.startswith("gpt-oss-20b, ossia: load, s; ") for line in remarks)
    record = report.record(found, REHEARSAL)
    assert json.loads(json.dumps(record)) == record
    assert len(record["rows"]) == len(rows) == len(report.cells(found, REHEARSAL)) - 5


def test_what_the_time_does_not_allow_is_skipped_by_name() -> None:
    found = suite.run(REHEARSAL, 8.0, scripted({"limits": f"print({json.dumps(LIMITS)!r})"}))
    assert {told.why for told in found.told.values()} == {"skipped: the time was up"}
    assert {case for case, _ in found.told} == {
        case for part in parts(REHEARSAL) for case in part.cases(REHEARSAL)
    }


def test_without_limits_the_rows_have_figures_all_the_same(monkeypatch) -> None:
    monkeypatch.setattr(suite, "_LEAST_SECONDS", 0.1)
    case = Case("gpt2", Measure.TRAINING, 2, 16)
    told = Told(case, Side.OSSIA, 100.0)
    programs = {
        "limits": "import sys; sys.exit('driver too old')",
        "trained gpt2": f"print({json.dumps(told.to_json())!r})",
    }
    found = suite.run(REHEARSAL, 3600.0, scripted(programs))
    assert found.limits["failed"] == {"card": "its process ended with exit code 1: driver too old"}
    [row] = [row for row in report.rows(found, REHEARSAL) if row.case == case]
    assert (row.ours, row.limit, row.share) == (told, None, None)


def test_a_limit_that_fails_is_unknown_and_says_why(monkeypatch) -> None:
    def is_too_large(*_: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(limits, "_multiply", is_too_large)
    found = limits.measure(CPU, REHEARSAL)
    assert found["failed"] == {"operations_per_second": "the card's memory ran out"}
    card = limits.hardware(found)
    assert card is not None
    assert card.flops is None
    assert Case("gpt2", Measure.TRAINING, 2, 16).limit(PRESETS["gpt2"], card, None) is None
    assert Case("gpt2", Measure.DECODE, 1, 8).limit(PRESETS["gpt2"], card, None)


def test_a_process_of_its_own_measures_the_limits(tmp_path: Path) -> None:
    command = suite.command("rehearsal", "cpu", tmp_path / "none")
    with suite._running(command(Part(Kind.LIMITS), 60.0)) as running:
        ended = running.finish(time.monotonic() + 600)
    assert running.records, ended
    [found] = running.records
    assert found["card"] == "this CPU"
    assert found["read_bytes_per_second"] > 0
    assert found["operations_per_second"] > 0
    assert found["versions"]["torch"] == torch.__version__
    assert found["failed"] == {}


def test_limits_are_those_of_the_formulas() -> None:
    config = PRESETS["gpt-oss-20b"]
    card = Hardware("", 1e11, 4e12, 8e14, ())
    decode = Case("gpt-oss-20b", Measure.DECODE, 1, 8192).limit(config, card, None)
    read = bytes_per_token(config) + kv_bytes(config, 8192)
    assert decode == pytest.approx(4e12 / read, rel=1e-6)
    load = Case("gpt-oss-20b", Measure.LOAD).limit(config, card, 5e10)
    assert load == pytest.approx(13.76 / 50, rel=1e-3)  # GB, GB/s
    gpt2 = FULL.training("gpt2").config
    training = Case("gpt2", Measure.TRAINING, 32, 1024).limit(gpt2, card, None)
    assert training == pytest.approx(8e14 / training_flops(gpt2, 1024))
    # 6 N per token, and 12 * layers * width * length / 2 for the visible half of the scores.
    by_hand = 6 * 124.0e6 + 6 * 12 * 768 * 1024
    assert training_flops(gpt2, 1024) == pytest.approx(by_hand, rel=0.01)


def test_shares_and_ratios_are_above_one_where_ossia_is_better() -> None:
    load, decode = Case("m", Measure.LOAD), Case("m", Measure.DECODE, 1, 8)

    def row(case: Case, ours: float, peer: float, limit: float) -> report.Row:
        return report.Row(case, Told(case, Side.OSSIA, ours), Told(case, Side.PEER, peer), limit)

    faster = row(load, 2.0, 8.0, 1.0)
    assert (faster.share, faster.ratio) == (0.5, 4.0)
    more = row(decode, 20.0, 5.0, 40.0)
    assert (more.share, more.ratio) == (0.5, 4.0)


def test_a_card_that_cannot_be_used_is_one_line(monkeypatch) -> None:
    for name in ("cpu", "cuda:x", "tpu"):
        with pytest.raises(OssiaError, match=f"--device {name}: a card is named cuda or cuda:1"):
            suite.check(name)
    monkeypatch.setattr(gpu, "problem", lambda: None)
    monkeypatch.setattr(gpu, "available", lambda: False)
    with pytest.raises(OssiaError, match=r"no NVIDIA GPU to measure; .*--rehearse"):
        suite.check("cuda")
    monkeypatch.setattr(gpu, "problem", lambda: "the NVIDIA GPU cannot be used: an old driver")
    with pytest.raises(OssiaError, match="cannot be used: an old driver; "):
        suite.check("cuda:0")
    triton = pytest.importorskip("ossia.ops.triton")
    monkeypatch.setattr(gpu, "available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(OssiaError, match="--device cuda:1: this process has cuda:0 to cuda:0"):
        suite.check("cuda:1")
    monkeypatch.setattr(triton, "unusable", lambda _: "the GTX 1080 has compute capability 6.1")
    with pytest.raises(OssiaError, match=r"compute capability 6.1; .*--rehearse"):
        suite.check("cuda")
    monkeypatch.setattr(triton, "unusable", lambda _: None)
    suite.check("cuda")
