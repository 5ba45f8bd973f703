"""What fits on a GPU is decided, and said in one line, before any weight is read."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import ossia
from ossia import OssiaError, load_model
from ossia.api.parts import Parts
from ossia.checkpoint import Beside, Placement, fit, read_config
from ossia.checkpoint.fit import WORKSPACE
from ossia.config import ModelConfig
from ossia.engine.capacity import holds, kv_budget, room, whole_text
from ossia.model import Decoder
from ossia.options import EngineOptions, LoadOptions
from tests.tiny_checkpoints import (
    GPT2_CONFIG,
    deep_gpt_oss,
    gpt2_tensors,
    write,
)

fitting = sys.modules["ossia.checkpoint.fit"]
loading = sys.modules["ossia.checkpoint.load"]
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
EXPERTS, LAYERS = 64, 6
EXPERT = (128 + 32 * 2) * 17 + (128 + 32) * 2  # blocks and scales of both matrices, and biases
LAYER = EXPERTS * EXPERT

Machine = Callable[..., None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model"), *deep_gpt_oss(EXPERTS, LAYERS))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """machine(free) is one with a GPU of 80 GB, of which so many bytes are free beside a workspace,
    64 GB of free host memory, and bandwidths as of an H200 and a server's processor.
    """

    def install(
        free: int,
        *,
        ram: int = 64 * 10**9,
        card: float = 4e12,
        host: float = 100e9,
        lacking: str | None = None,
        gpus: int = 1,
    ) -> None:
        def refuse(*_: object) -> None:
            raise AssertionError("weights are read")

        monkeypatch.setattr(loading, "_device", lambda _name: CUDA)
        monkeypatch.setattr(loading, "fill", refuse)
        monkeypatch.setattr(fitting, "free_memory", lambda _device: WORKSPACE + free)
        monkeypatch.setattr(fitting, "device_memory", lambda _device: 80 * 10**9)
        monkeypatch.setattr(fitting, "available_memory", lambda: ram)
        monkeypatch.setattr(fitting.ops, "lacking", lambda _device: lacking)
        bandwidths = {CUDA: card, CPU: host}
        monkeypatch.setattr(fitting, "read_bandwidth", bandwidths.__getitem__)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    return install


def without_weights(config: ModelConfig) -> Decoder:
    with torch.device("meta"):
        return Decoder(config)


def weights(folder: Path) -> int:
    return sum(tensor.nbytes for tensor in load_model(folder, device="cpu").state_dict().values())


def place(folder: Path, beside: Beside | None = None, **options: object) -> Placement:
    return fit(folder, LoadOptions(**options), lambda *_: beside or Beside())  # type: ignore[arg-type]


def refusal(folder: Path, beside: Beside | None = None, **options: object) -> str:
    with pytest.raises(OssiaError) as caught:
        place(folder, beside, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def test_a_model_that_fits_is_whole_on_the_gpu(folder: Path, machine: Machine) -> None:
    size = weights(folder)
    machine(size + 1000)
    assert place(folder, device="cuda") == Placement(CUDA, (), 1000)
    machine(size)
    assert place(folder, device="cuda") == Placement(CUDA, (), 0)


def test_experts_that_do_not_fit_stay_on_the_host(folder: Path, machine: Machine) -> None:
    """As many layers' as possible are on the GPU, beside room for one that passes through."""
    dense = weights(folder) - LAYERS * LAYER
    for free, near in (
        (dense + 6 * LAYER - 1, 3),
        (dense + 4 * LAYER, 2),
        (dense + 4 * LAYER - 1, 1),
        (dense + 2 * LAYER, 0),
    ):
        machine(free)
        placed = place(folder, device="cuda")
        assert placed.on_host == tuple(range(near, LAYERS)), free
    machine(dense)
    assert place(folder, device="cuda") == Placement(CUDA, (0, 1, 2, 3, 4, 5), 0, sends=False)
    machine(dense + 2 * LAYER - 1)
    assert not place(folder, device="cuda").sends
    machine(dense - 1)
    line = refusal(folder, device="cuda")
    assert f"{megabytes(dense)} of weights and 1.1 GB to compute in" in line
    assert re.search(r"are free: 0\.0 MB are missing; free some of its memory, or use", line)


def test_room_for_a_whole_text_is_left_where_experts_make_way(
    folder: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = weights(folder) - LAYERS * LAYER
    machine(dense + 4 * LAYER + 5000)
    placed = place(folder, Beside(wished=5000), device="cuda")
    assert placed == Placement(CUDA, (2, 3, 4, 5), 5000)
    assert place(folder, Beside(wished=5001), device="cuda").on_host == (1, 2, 3, 4, 5)
    # A long context takes no more than an eighth of what is free.
    monkeypatch.setattr(fitting, "WORKSPACE", 0)
    free = (dense + 4 * LAYER) * 8 // 7 + 8
    monkeypatch.setattr(fitting, "free_memory", lambda _device: free)
    assert dense + 6 * LAYER > free
    placed = place(folder, Beside(wished=10**12), device="cuda")
    assert placed.on_host == (2, 3, 4, 5)
    assert 0 <= placed.keys - free // 8 < 10


def test_keys_that_are_only_wished_for_take_what_is_left(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where no expert is left on the GPU; those that must be there are still missing."""
    config, free = ossia.config("gpt-oss-20b"), 5_000_000_000
    needs = fitting.Needs.of(without_weights(config), torch.bfloat16)
    machine(free - WORKSPACE)
    left = free - WORKSPACE - needs.dense
    assert 0.3e9 < left < free // 8

    def placed(beside: Beside) -> Placement:
        return fitting.place(needs, LoadOptions(device="cuda"), CUDA, Path("model"), beside)

    every = tuple(range(len(config.layers)))
    assert placed(Beside(wished=10**10, holds=str)) == Placement(CUDA, every, left, sends=False)
    assert caplog.messages[-1].endswith(f"take 10.0 GB: {left}")
    assert placed(Beside(left, 10**10)).keys == left
    with pytest.raises(OssiaError, match=r"0\.1 GB are missing"):
        placed(Beside(left + 10**8, 10**10))


@pytest.mark.parametrize("size", [LAYER, 2 * LAYER - 1, f"{LAYER}"])
def test_expert_memory_is_for_the_gpus(folder: Path, machine: Machine, size: int | str) -> None:
    machine(10**9)
    assert place(folder, device="cuda", expert_memory=size).on_host == (1, 2, 3, 4, 5)
    assert place(folder, device="cuda", expert_memory=1).on_host == (0, 1, 2, 3, 4, 5)
    assert place(folder, device="cuda", expert_memory="all").on_host == ()


def test_what_is_missing_and_what_would_fit(folder: Path, machine: Machine) -> None:
    size = weights(folder)
    dense = size - LAYERS * LAYER
    machine(size - 200_000)
    line = refusal(folder, device="cuda", expert_memory="all")
    free = f"{(WORKSPACE + size - 200_000) / 1e9:,.1f} GB of the 80.0 GB of cuda:0 are free"
    assert line == (
        f"{folder}: {megabytes(size)} of weights and 1.1 GB to compute in, but {free}: 0.2 MB are "
        "missing; leave --expert-memory out, for 3 layers' experts in host memory, or free some of "
        "its memory, or use --device cpu"
    )
    machine(dense - 1, gpus=4)
    line = refusal(folder, device="cuda", expert_memory="all")
    assert "missing; --devices 4, or free some" in line


def test_memory_for_keys_that_does_not_fit(folder: Path, machine: Machine) -> None:
    size = weights(folder)
    machine(size + 10**9)
    beside = Beside(3 * 10**9, 3 * 10**9, lambda left: f"{left} bytes of text")
    line = refusal(folder, beside, device="cuda", expert_memory="all")
    assert "3.0 GB for keys and values" in line
    assert "2.0 GB are missing; --kv-memory 1.0GB, for 1000000000 bytes of text, or free" in line


def test_a_context_that_is_longer_than_what_is_left(
    folder: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine(weights(folder) + 1000)
    caplog.set_level("WARNING")
    place(folder, Beside(0, 1000, str), device="cuda")
    assert not caplog.messages
    place(folder, Beside(0, 2_000_000, str), device="cuda")
    assert caplog.messages == ["keys and values of a text as long as the context take 2.0 MB: 1000"]


GB = 1 << 30


@pytest.mark.parametrize(
    ("name", "free", "near", "sends"),
    [
        ("gpt-oss-20b", 15.4 * GB, 24, True),  # of a card of 16 GB
        ("gpt-oss-20b", 11.4 * GB, 12, True),
        ("gpt-oss-120b", 79 * GB, 36, True),
        ("gpt-oss-120b", 23.4 * GB, 7, True),
        ("gpt-oss-120b", 7.4 * GB, 0, False),
        ("qwen3-8b", 23.4 * GB, None, True),
    ],
)
def test_published_models_at_their_true_sizes(
    machine: Machine, monkeypatch, name: str, free: float, near: int | None, sends: bool
) -> None:
    """With room for the keys and values of a whole text, or an eighth of what is free."""
    config = ossia.config(name)
    decoder = without_weights(config)
    needs = fitting.Needs.of(decoder, torch.bfloat16)
    if name == "gpt-oss-20b":
        assert needs.whole == 13_761_264_768
        assert needs.read + needs.read_by_token(needs.experts) == pytest.approx(3.71e9, rel=1e-3)
    machine(int(free) - WORKSPACE)
    beside = Beside(*room(EngineOptions(), config, torch.bfloat16))
    found = fitting.place(needs, LoadOptions(device="cuda"), CUDA, Path(name), beside)
    assert len(found.on_host) == (0 if near is None else len(config.layers) - near)
    assert found.sends == sends
    if found.on_host:
        assert found.keys >= min(beside.wished, free // 8)


def test_a_share_of_a_gpu_among_several(folder: Path, machine: Machine) -> None:
    needs = fitting.Needs.of(without_weights(read_config(folder)), torch.bfloat16)
    machine(needs.whole // 4)
    fitting.check_share(needs, 4, CUDA)
    with pytest.raises(OssiaError, match=r"--devices 3 needs at least .* on each, but .* missing"):
        fitting.check_share(needs, 3, CUDA)


def test_a_draft_model_needs_room_too(folder: Path, machine: Machine) -> None:
    size = weights(folder)
    machine(size + 1000)
    assert place(folder, Beside(draft=1000), device="cuda") == Placement(CUDA)
    line = refusal(folder, Beside(draft=9 * 10**8), device="cuda", expert_memory="all")
    assert "900.0 MB of the draft model's and" in line.replace("0.9 GB", "900.0 MB")


def test_auto_takes_the_gpu_where_it_is_faster(
    folder: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """A token's bytes by what each memory gives, and what a GPU needs at least for a layer."""
    caplog.set_level(logging.INFO, "ossia")
    big = 10**9
    for gpu, figures in (
        (False, {"host": 100e9}),  # so small a model is done before a GPU has begun
        (True, {"host": 1e8}),
        (False, {"host": 1e8, "card": 1e8}),
        (False, {"host": 1e8, "lacking": "the Tesla T4 has compute capability 7.5"}),
    ):
        caplog.clear()
        machine(big, **figures)
        placed = place(folder, device="auto")
        assert placed.device == (CUDA if gpu else CPU), figures
        (line,) = caplog.messages
        assert line.startswith("device cuda:0: the fastest" if gpu else "device cpu: ")
        assert place(folder, device="cuda").device == CUDA
    assert "Tesla T4" in line


def test_auto_leaves_a_gpu_that_others_have_filled(
    folder: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine(1000, host=1e9)
    assert place(folder, device="auto") == Placement(CPU)
    (line,) = caplog.messages
    assert re.fullmatch(r"device cpu: .* of the 80\.0 GB of cuda:0 are free: .* are missing", line)


def test_experts_for_which_the_host_has_no_room(
    folder: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine(weights(folder) - 1, ram=LAYER, host=1e9)
    assert place(folder, device="auto") == Placement(CPU)
    assert "do not fit cuda:0, nor the" in caplog.text
    assert place(folder, device="cuda").on_host == (3, 4, 5)
    assert "read from disk again and again, which is slow" in caplog.messages[-1]


def test_a_model_without_experts(tmp_path: Path, machine: Machine) -> None:
    folder = write(tmp_path, GPT2_CONFIG, gpt2_tensors())
    size = weights(folder)
    machine(size)
    assert place(folder, device="cuda") == Placement(CUDA)
    machine(size - 1)
    assert "are missing; free some of its memory, or use --device cpu" in refusal(
        folder, device="cuda"
    )


def test_a_server_is_refused_before_it_reads_weights(folder: Path, machine: Machine, monkeypatch):
    """As `ossia serve` opens a model: with memory for keys and values that is not there."""
    api = sys.modules["ossia.api.parts"]
    monkeypatch.setattr(api.text, "load_tokenizer", lambda _folder: None)
    monkeypatch.setattr(api, "_load_format", lambda *_: None)
    machine(weights(folder) + 10**9)
    with pytest.raises(OssiaError, match=r"missing; --kv-memory 1\.0GB, for 1\.0 GB hold a text"):
        Parts.load(folder, LoadOptions(device="cuda"), EngineOptions(kv_memory="20GB"))


def test_keys_get_what_was_left_where_experts_made_way() -> None:
    with_keys = sys.modules["ossia.api.parts"]._with_keys
    for placement, options, expected in (
        (Placement(CUDA, (3,), 10**9), EngineOptions(), 10**9),
        (Placement(CUDA, (3,), 10**9), EngineOptions(kv_memory="2GB"), "2GB"),
        (Placement(CUDA, (3,), 1000), EngineOptions(), None),
        (Placement(CUDA, (), 10**9), EngineOptions(), None),
    ):
        assert with_keys(options, placement).kv_memory == expected


def test_words_and_bytes_of_keys_and_values(folder: Path) -> None:
    """The longest text by each type of stored keys, by the formula."""
    config: ModelConfig = read_config(folder)
    position = 2 * 2 * 6 * 2  # keys and values of two heads of six, in bfloat16
    context, window = 256, 4
    assert whole_text(config, torch.bfloat16) == 3 * position * (context + window)
    least, wished, words = room(EngineOptions(), config, torch.bfloat16)
    assert (least, wished) == (0, 3 * position * (context + window))
    assert room(EngineOptions(kv_memory=77), config, torch.bfloat16)[:2] == (77, 77)
    assert words(10**9).endswith(f"hold a text of {context} tokens")
    options = EngineOptions(max_batch=1, prefill_chunk=1)
    said = holds(config, options, torch.bfloat16, 14 * 16 * 3 * position)
    found = re.search(r"a text of (\d+) tokens, or (\d+) with --kv int8", said)
    assert found is not None
    plain, packed = map(int, found.groups())
    assert 0 < plain < packed <= context


def test_a_gpus_share_for_keys_is_a_whole_text_if_it_can_be(folder: Path, monkeypatch) -> None:
    decoder = load_model(folder, device="cpu")
    whole = whole_text(decoder.config, torch.bfloat16)
    monkeypatch.setattr(type(decoder), "device", CUDA)
    for free, budget in (
        (8 * WORKSPACE, 2 * WORKSPACE),
        (WORKSPACE, WORKSPACE // 4),
        (4 * whole, whole),
    ):
        monkeypatch.setattr("ossia.engine.capacity.free_memory", lambda _, free=free: free)
        monkeypatch.setattr("ossia.engine.capacity._WORKSPACE", min(WORKSPACE, free - whole))
        assert kv_budget(decoder, None, torch.bfloat16) == budget
