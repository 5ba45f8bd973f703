"""A model whose experts are partly in host memory gives the tokens of the plain model.

The CPU is the GPU as well, and copies to it take place as late as they may.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ossia import load_model
from ossia.checkpoint import Placement, read_config, save
from ossia.checkpoint.load import load
from ossia.engine import Engine, Request, SamplingParams
from ossia.engine import runner as running
from ossia.model import Decoder
from ossia.model.feedforward import MoE
from ossia.model.linear import Experts
from ossia.offload import host as hosting
from ossia.offload import placing
from ossia.offload.host import Host, HostExperts
from ossia.ops import REFERENCE, Backend, ExpertWeights, Routing, select
from ossia.ops.mxfp4 import MXFP4
from ossia.options import Dtype, EngineOptions, Load, LoadOptions
from tests.links import Late
from tests.tiny_checkpoints import (
    GPT_OSS_CONFIG,
    QWEN3_MOE_CONFIG,
    VOCAB,
    gpt_oss_tensors,
    qwen3_moe_tensors,
    write_shards,
)

CPU = torch.device("cpu")
EXPERTS = 8
FAMILIES = {
    "gpt-oss": lambda: (
        {**GPT_OSS_CONFIG, "num_local_experts": EXPERTS, "num_experts_per_tok": 3},
        gpt_oss_tensors(EXPERTS),
    ),
    "qwen3 moe": lambda: (QWEN3_MOE_CONFIG, qwen3_moe_tensors()),
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, tensors = FAMILIES[request.param]()
    return write_shards(tmp_path_factory.mktemp("experts"), config, tensors)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Late:
    """The CPU as a GPU that runs a backend of its own."""
    link = Late()
    monkeypatch.setattr(sys.modules["ossia.checkpoint.load"], "link_to", lambda _device: link)
    monkeypatch.setattr(hosting, "link_to", lambda _device: link)
    monkeypatch.setattr(placing, "_LARGEST", 4)
    return link


def layers_of(folder: Path) -> tuple[int, ...]:
    return tuple(range(len(read_config(folder).layers)))


def load_on_host(folder: Path, layers: tuple[int, ...], most: int | None = None) -> Decoder:
    decoder = load(
        folder, LoadOptions(dtype=Dtype.float32, backend="reference"), Placement(CPU, layers)
    )
    hosts = {id(found.host): found.host for found in stacks(decoder)}
    (host,) = hosts.values()
    host.most = most
    return decoder


def stacks(decoder: Decoder) -> list[HostExperts]:
    values = [module.value for module in decoder.modules() if isinstance(module, Experts)]
    return [value for value in values if isinstance(value, HostExperts)]


def greedy(decoder: Decoder, new: int = 9) -> list[list[int]]:
    """Prompts in chunks of up to 9 tokens, then steps of up to 3."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(VOCAB, (n,), generator=generator).tolist() for n in (1, 5, 14)]
    sampling = SamplingParams(temperature=0, max_tokens=new)
    engine = Engine(decoder, EngineOptions(prefill_chunk=9, kv_memory="64MiB"))
    return [result.tokens for result in engine.generate(Request(p, sampling) for p in prompts)]


@pytest.mark.parametrize(("layers", "most"), [(2, None), (1, 4), (2, 0)])
def test_tokens_are_those_of_the_plain_model(
    folder: Path, card: Late, layers: int, most: int | None
) -> None:
    """All steps on the host, those of few tokens, and none."""
    expected = greedy(load_model(folder, dtype="float32", backend="reference"))
    assert len({token for tokens in expected for token in tokens}) > 4
    decoder = load_on_host(folder, layers_of(folder)[-layers:], most)
    before = card.sent
    assert greedy(decoder) == expected
    assert (card.sent > before) == (most is not None)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, which interprets
def test_a_gpus_kernels_and_the_hosts_make_one_model(
    card: Late, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer's experts in the GPU's layout, the other's sent for more than two tokens."""
    triton = pytest.importorskip("ossia.ops.triton")
    folder = write_shards(tmp_path, *FAMILIES["gpt-oss"]())
    expected = greedy(load_model(folder, dtype="float32", backend="reference"), 2)
    cpu, loading = select(), sys.modules["ossia.checkpoint.load"]
    monkeypatch.setattr(
        loading.ops,
        "select",
        lambda name, *_, **_options: cpu if name == "auto" else triton.TRITON,
    )
    decoder = load_on_host(folder, (1,), 2)
    assert decoder.ops is triton.TRITON
    assert stacks(decoder)[0].host.backend is cpu
    assert greedy(decoder, 2) == expected


def test_few_tokens_have_the_bits_of_the_hosts_kernels(folder: Path, card: Late) -> None:
    """Nothing is rounded on the way there and back."""
    pytest.importorskip("ossia.ops._native")
    plain = load_model(folder, backend="cpu")
    decoder = load(folder, LoadOptions(backend="cpu"), Placement(CPU, layers_of(folder)))
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    assert torch.equal(decoder(tokens), plain(tokens))


def test_steps_are_not_recorded(folder: Path, card: Late, monkeypatch) -> None:
    """A graph would wait for nothing that the host does."""
    decoder = load_on_host(folder, (0,))

    class Recording(Backend):
        def recorder(self):
            raise AssertionError("a step that visits the host cannot be replayed")

    decoder.ops = Recording()
    monkeypatch.setattr(running, "DecodeStep", None)
    greedy(decoder)


@pytest.mark.parametrize("how", [Load.map, Load.copy])
def test_the_hosts_experts_are_mapped_or_copied(folder: Path, card: Late, how: Load) -> None:
    plain = load_model(folder)
    options = LoadOptions(load=how, backend="reference")
    decoder = load(folder, options, Placement(CPU, layers_of(folder)[-1:]))
    maps = Path("/proc/self/maps")
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name
        if name == "layers.1.feedforward.down.blocks" and maps.exists():
            assert mapped(tensor, maps, folder) == (how is Load.map)


def mapped(tensor: Tensor, maps: Path, folder: Path) -> bool:
    for line in maps.read_text(encoding="utf-8").splitlines():
        first, last = (int(bound, 16) for bound in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return str(folder) in line
    raise AssertionError("not in the address space")


def test_a_saved_model_is_whole(folder: Path, card: Late, tmp_path: Path) -> None:
    decoder = load(folder, LoadOptions(backend="reference"), Placement(CPU, layers_of(folder)))
    save(decoder, tmp_path / "copy")
    tokens = torch.tensor([[2, 7, 1, 8]])
    assert torch.equal(load_model(tmp_path / "copy")(tokens), load_model(folder)(tokens))


def test_one_line_says_where_experts_are(
    folder: Path, card: Late, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr(placing, "_LARGEST", 4096)
    seconds = iter([0.25, *[0.1] * 5, 0.3])  # a copy, then the host with 1, 2, 4, ... tokens
    monkeypatch.setattr(placing, "_seconds", lambda *_: next(seconds))
    caplog.set_level(logging.INFO, "ossia")
    decoder = load(folder, LoadOptions(backend="reference"), Placement(CPU, layers_of(folder)[-1:]))
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("experts")]
    assert f"those of 1 of {len(layers_of(folder))} layers" in line
    assert "stay in host memory and are computed there, without a CUDA graph" in line
    assert "steps of more than 16 tokens send a layer's to cpu, in 250 ms" in line
    assert stacks(decoder)[0].host.most == 16


def test_a_gpu_without_room_for_a_layer_sends_none(folder: Path, card: Late, monkeypatch) -> None:
    def full(*_: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.\n...")

    monkeypatch.setattr(placing, "_seconds", full)
    decoder = load(folder, LoadOptions(backend="reference"), Placement(CPU, layers_of(folder)[-1:]))
    assert stacks(decoder)[0].host.most is None


class Near(Backend):
    """A host's backend that takes nothing but what is there, once it has been waited for."""

    def __init__(self) -> None:
        self.waits = self.calls = 0

    def moe(self, x, routing, experts, *, residual=None, dtype=None):
        assert self.waits == self.calls + 1
        self.calls += 1
        assert experts.gate_up.shape[0] == EXPERTS
        for tensor in (x, *routing, experts.gate_up_bias):
            assert tensor is not None
            assert tensor.is_cpu
        return torch.empty_like(x, dtype=dtype or x.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_only_tokens_cross_the_bus(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Tensors without numbers, on a GPU that is not there: torch refuses to mix devices."""
    near = Near()

    class Stream:
        def synchronize(self) -> None:
            near.waits += 1

    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: Stream())
    with FakeTensorMode():
        packed = MXFP4(
            torch.empty(EXPERTS, 64, 1, 16, dtype=torch.uint8),
            torch.empty(EXPERTS, 64, 1, dtype=torch.uint8),
        )
        stack = HostExperts(packed, Host(near, None))
        bias = torch.empty(EXPERTS, 64, dtype=dtype)
        x = torch.empty(5, 32, dtype=dtype, device="cuda")
        chosen = torch.empty(5, 2, dtype=torch.int64, device="cuda")
        routing = Routing(chosen, torch.empty(5, 2, device="cuda"))
        weights = ExpertWeights(stack, bias, stack, bias, None)  # type: ignore[arg-type]
        for result in (None, torch.float32):
            out = REFERENCE.moe(x, routing, weights, residual=x, dtype=result)
            assert out.device.type == "cuda"
            assert out.shape == x.shape
    assert near.calls == 2


def test_modules_are_named_as_decoders_name_them(folder: Path) -> None:
    decoder = load_model(folder)
    names = {name for name, module in decoder.named_modules() if isinstance(module, Experts)}
    assert placing.modules(layers_of(folder)) == names
    assert all(isinstance(decoder.get_submodule(n.rpartition(".")[0]), MoE) for n in names)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card, and torch sees none")
@pytest.mark.parametrize("most", [None, 2, 0])
def test_a_card_and_its_host_make_one_model(folder: Path, most: int | None) -> None:
    """The kernels of both, and experts that are sent through pinned buffers."""
    expected = greedy(load_model(folder, dtype="float32", backend="reference", device="cpu"))
    layers = layers_of(folder)[-1:]
    placement = Placement(torch.device("cuda", 0), layers)
    decoder = load(folder, LoadOptions(dtype=Dtype.float32), placement)
    stacks(decoder)[0].host.most = most
    assert decoder.device.type == "cuda"
    assert greedy(decoder) == expected
