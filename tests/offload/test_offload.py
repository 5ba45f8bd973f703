"""Experts read from disk when they are needed give what experts in memory give."""

from __future__ import annotations

import copy
import gc
import io
import logging
import os
import threading
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch

from ossia import OssiaError
from ossia import load_model as load
from ossia.checkpoint import save
from ossia.checkpoint.files import read_tensors
from ossia.engine import Driver, Engine, Failure, Request, SamplingParams, TokenOutput
from ossia.engine.request import Output
from ossia.model import Decoder
from ossia.offload import plan as planning
from ossia.offload import store_of
from ossia.offload.store import ExpertStore
from ossia.options import EngineOptions
from tests.tiny_checkpoints import (
    GPT2_CONFIG,
    GPT_OSS_CONFIG,
    LAYERS,
    ORIGINAL_CONFIG,
    VOCAB,
    gpt2_tensors,
    gpt_oss_tensors,
    original_tensors,
    write,
    write_shards,
)

EXPERTS = 12
CONFIG = {**GPT_OSS_CONFIG, "num_local_experts": EXPERTS, "num_experts_per_tok": 4}
EXPERT_BYTES = (128 * 1 + 32 * 2) * 17  # rows of gate_up and of down in blocks of 32
ALL = EXPERTS * LAYERS
BACKENDS = ("cpu", "reference")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = gpt_oss_tensors(EXPERTS)
    # Large weights: what is written depends on what is read.
    return write_shards(tmp_path_factory.mktemp("experts"), CONFIG, tensors)


def with_slots(
    folder: Path, slots: int, backend: str = "auto", dtype: str | None = None
) -> Decoder:
    decoder = load(folder, dtype=dtype, backend=backend, expert_memory=slots * EXPERT_BYTES)
    assert stored(decoder).slots == min(slots, ALL)
    return decoder


def stored(decoder: Decoder) -> ExpertStore:
    store = store_of(decoder)
    assert store is not None
    return store


def greedy(decoder: Decoder, prompts: list[list[int]], tokens: int = 24) -> list[list[int]]:
    sampling = SamplingParams(temperature=0, max_tokens=tokens)
    results = Engine(decoder, EngineOptions(prefill_chunk=9)).generate(
        Request(p, sampling) for p in prompts
    )
    return [result.tokens for result in results]


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(VOCAB, (n,), generator=generator).tolist() for n in lengths]


def assert_near(found: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    """Up to that share of the norm, which is what rounding costs."""
    assert (found - expected).norm() <= share * expected.norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("slots", [1, 4, 7, 16, ALL])
def test_tokens_are_those_of_experts_in_memory(folder: Path, slots: int, backend: str) -> None:
    batch = prompts(1, 5, 30)
    expected = greedy(load(folder, dtype="float32", backend=backend), batch)
    assert len({token for tokens in expected for token in tokens}) > 4
    assert greedy(with_slots(folder, slots, backend, "float32"), batch) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("slots", [1, 5, ALL])
def test_logits_of_few_tokens_have_the_same_bits_on_native_kernels(
    folder: Path, slots: int, dtype: str
) -> None:
    pytest.importorskip("ossia.ops._native")
    tokens = torch.tensor(prompts(40))
    expected = load(folder, dtype=dtype, backend="cpu")
    found = load(folder, dtype=dtype, backend="cpu", expert_memory=slots * EXPERT_BYTES)
    for part in (tokens[:, :1], tokens[:, 3:7]):
        assert torch.equal(found(part), expected(part))
    # Experts that come later meet fewer tokens at once, which may take another kernel.
    assert_near(found(tokens), expected(tokens), 1e-5 if dtype == "float32" else 2**-7)


def test_both_layouts_of_gpt_oss_are_read(tmp_path: Path) -> None:
    hub = write(tmp_path / "hub", GPT_OSS_CONFIG, gpt_oss_tensors())
    original = write(tmp_path / "original", ORIGINAL_CONFIG, original_tensors())
    one, other = load(hub, expert_memory=EXPERT_BYTES), load(original, expert_memory="3.3kB")
    tokens = torch.tensor(prompts(9))
    assert torch.equal(one(tokens), other(tokens))


def test_prefetches_change_no_result_and_many_are_right(folder: Path, monkeypatch) -> None:
    batch = prompts(3, 20)
    prefetching = with_slots(folder, 16)
    found = greedy(prefetching, batch)
    reads = stored(prefetching).reads
    assert reads.prefetched >= reads.prefetch_hits > 0
    monkeypatch.setattr(planning, "_predictor", lambda *_: None)
    plain = with_slots(folder, 16)
    assert greedy(plain, batch) == found
    assert stored(plain).reads.prefetched == 0


def test_callers_in_many_threads_take_turns(folder: Path) -> None:
    decoder, expected = with_slots(folder, 6), load(folder)
    texts = [torch.tensor([p]) for p in prompts(*range(1, 9))]
    logits: dict[int, torch.Tensor] = {}

    def run(index: int) -> None:
        with torch.inference_mode():
            for _ in range(3):
                logits[index] = decoder(texts[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, text in enumerate(texts):
        assert_near(logits[index], expected(text), 2**-7)


def test_all_slots_are_enough_to_read_each_expert_once(folder: Path) -> None:
    decoder = with_slots(folder, 10 * ALL)
    store = stored(decoder)
    for _ in range(3):
        decoder(torch.tensor(prompts(60)))
    assert store.reads.bytes_read <= ALL * EXPERT_BYTES
    before = store.reads
    decoder(torch.tensor(prompts(60)))
    assert (store.reads - before).hit_rate == 1


def test_a_saved_model_is_whole(folder: Path, tmp_path: Path) -> None:
    save(with_slots(folder, 4), tmp_path / "copy")
    tokens = torch.tensor(prompts(9))
    assert torch.equal(load(tmp_path / "copy")(tokens), load(folder)(tokens))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_dense_weights_are_in_memory_but_the_embedding_and_experts_in_the_file(
    folder: Path,
) -> None:
    def mapped(tensor: torch.Tensor) -> bool:
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            first, last = (int(bound, 16) for bound in line.split()[0].split("-"))
            if first <= tensor.data_ptr() < last:
                return str(folder) in line
        raise AssertionError("not in the address space")

    decoder, plain = with_slots(folder, 4), load(folder)
    for name, tensor in decoder.state_dict().items():
        in_file = name == "embedding.weight" or name.endswith(("blocks", "scales"))
        assert mapped(tensor) == in_file, name
        assert torch.equal(tensor, plain.state_dict()[name])


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda decoder: torch.save(decoder, io.BytesIO())]
)
def test_a_copy_is_refused_in_one_line(folder: Path, copied) -> None:
    decoder = with_slots(folder, 4)
    with pytest.raises(OssiaError, match="cannot be copied or pickled: load it again"):
        copied(decoder)


def test_threads_and_files_go_with_the_model(folder: Path) -> None:
    def threads() -> set[threading.Thread]:
        return {t for t in threading.enumerate() if t.name.startswith("ossia-read")}

    gc.collect()  # models of other tests
    others = threads()
    decoder = with_slots(folder, 4)
    decoder(torch.tensor([[1, 2]]))
    assert threads() > others
    stored(decoder).close()
    assert threads() == others
    with pytest.raises(OssiaError, match="were closed: load it again"):
        decoder(torch.tensor([[1, 2]]))
    with_slots(folder, 4)(torch.tensor([[1, 2]]))
    gc.collect()
    assert threads() == others


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_told_that_nobody_reads_for_it(folder: Path) -> None:
    driver = Driver(Engine(with_slots(folder, 4), EngineOptions(prefix_cache=False)))

    def run() -> Output:
        outputs: SimpleQueue[Output] = SimpleQueue()
        params = SamplingParams(temperature=0, max_tokens=5)
        driver.submit(Request([1, 2, 3], params), outputs.put)
        while (output := outputs.get(timeout=300)) and isinstance(output, TokenOutput):
            if output.finish_reason:
                break
        return output

    assert isinstance(run(), TokenOutput)
    child = os.fork()
    if child == 0:
        failed = run()
        told = isinstance(failed, Failure) and "in a process forked from" in str(failed.error)
        os._exit(7 if told else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert isinstance(run(), TokenOutput)
    driver.close()


def test_a_file_may_vanish_but_not_shrink(tmp_path: Path) -> None:
    file = write(tmp_path / "a", CONFIG, gpt_oss_tensors(EXPERTS)) / "model.safetensors"
    tokens = torch.tensor(prompts(6))  # so few have the same bits each time
    decoder = with_slots(tmp_path / "a", 4)
    expected = decoder(tokens)
    moved = file.rename(tmp_path / "elsewhere")
    assert torch.equal(decoder(tokens), expected)
    # The embedding, which stays mapped, lies in front of the experts.
    os.truncate(moved, moved.stat().st_size // 2)
    with pytest.raises(OssiaError) as caught:
        decoder(tokens)
    assert f"{file}: expert" in str(caught.value)
    assert "ends at byte" in str(caught.value)
    assert "copy the file again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_scale_that_is_nan_is_found_when_it_is_read(tmp_path: Path) -> None:
    tensors = gpt_oss_tensors(EXPERTS)
    tensors["model.layers.1.mlp.experts.down_proj_scales"][3, 2, 1] = 255
    decoder = with_slots(write(tmp_path, CONFIG, tensors), 4)
    expected = "expert 3 of layer 1 has a byte 255, which is NaN in MXFP4"
    with pytest.raises(OssiaError, match=expected):  # 60 tokens are routed to each of the experts
        decoder(torch.tensor(prompts(60)))


def test_sizes_that_cannot_be_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    for size, message in (
        (EXPERT_BYTES - 1, "holds none"),
        ("1", "holds none"),
        ("-3GB", "is no size"),
        ("much", "is no size"),
    ):
        with pytest.raises(OssiaError, match=message):
            load(folder, expert_memory=size)
    with pytest.raises(OssiaError, match="MXFP4 experts on the CPU; there are none in this"):
        load(write(tmp_path, GPT2_CONFIG, gpt2_tensors()), expert_memory="1GB")


def test_experts_are_read_on_demand_where_they_do_not_fit(
    folder: Path, monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ossia")
    monkeypatch.setattr(planning, "_SPARE", 1000)
    total = sum(tensor.nbytes for tensor in read_tensors(folder).values())
    for free, slots in ((None, None), (total, None), (total - 1, ALL - 2), (total // 2, 6)):
        caplog.clear()
        monkeypatch.setattr(planning, "available_memory", lambda free=free: free)
        store = store_of(load(folder))
        assert (store is None) == (slots is None)
        if store is not None:
            assert free is not None
            assert slots is not None
            (line,) = [r.getMessage() for r in caplog.records if "expert" in r.getMessage()]
            assert f"{store.slots} of {ALL} held" in line
            dense = total - ALL * EXPERT_BYTES
            spare = max(1000, free // 10)
            assert store.slots * EXPERT_BYTES <= free - dense - spare
            assert (store.slots + 1) * EXPERT_BYTES > free - dense - spare
        assert store_of(load(folder, expert_memory="all")) is None
