"""The estimate of memory, beside what torch really keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ossia.adapt import lora
from ossia.adapt.lora import LoRA
from ossia.config import Dropout, ExpertFormat, with_expert_format
from ossia.families import PRESETS as FAMILIES
from ossia.insight.counts import count
from ossia.model import Decoder
from ossia.model.linear import Experts
from ossia.ops import attention, mxfp4, packing, rounded
from ossia.ops.adapted import Adapted
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.training import Training
from ossia.ops.weight import Matrix
from ossia.train import budget
from ossia.train.budget import Updates, Whole
from ossia.train.evaluate import hidden_states
from ossia.train.rounding import set_rounding
from ossia.train.runs.finetune import estimate
from ossia.train.runs.presets import PRESETS
from ossia.train.settings import FineTuneSettings, Precision, Settings

TOKENS = torch.randint(300, (2, 128), generator=torch.Generator().manual_seed(0))
ALL = ("attention", "mlp", "experts")


def built(name: str, ops: Training | None = None) -> Decoder:
    config = with_expert_format(replace(PRESETS[name], vocab_size=300), ExpertFormat.DENSE)
    decoder = Decoder(config, ops or Training())
    decoder.init_weights(torch.Generator().manual_seed(0))
    return decoder


def adapted(name: str, learned: LoRA, rounded: bool, ops: Training | None = None) -> Decoder:
    """With updates of matrices that lie as in a checkpoint, experts packed."""
    whole = built(name)
    weights = whole.state_dict()
    for name, module in whole.named_modules():
        if isinstance(module, Experts):
            dense = weights.pop(f"{name}.weight")
            packed = mxfp4.quantize(dense).tensors().items()
            weights |= {f"{name}.{part}": tensor for part, tensor in packed}
    config = with_expert_format(whole.config, ExpertFormat.MXFP4)
    decoder = Decoder.assembled(config, weights, ops or Training()).requires_grad_(False)
    lora.attach(decoder, learned, torch.Generator().manual_seed(0))
    set_rounding(decoder, rounded)
    return decoder.train()


def kept(decoder: Decoder, rows: Tensor = TOKENS) -> int:
    """Bytes that a forward pass leaves to the backward pass, beside the model."""
    own = [*decoder.parameters(), *decoder.buffers()]
    model = {tensor.untyped_storage().data_ptr() for tensor in own}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in model:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        assert hidden_states(decoder, rows, None).requires_grad
    return sum(found.values())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["small-gpt-oss", "small-gpt2", "small-qwen3"])
def test_the_estimate_of_activations_is_what_torch_keeps(name: str, recompute: bool) -> None:
    decoder = built(name)
    if recompute:
        decoder.recompute_layers()
    config = decoder.config
    layers = budget.layers(config, TOKENS.numel(), recompute=recompute)
    if recompute:  # the one that is run again comes later
        layers -= budget.layers(config, TOKENS.numel(), recompute=False) // len(config.layers)
    assert kept(decoder) == pytest.approx(layers, rel=0.1 + 0.25 * recompute)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("name", ["small-gpt-oss", "small-gpt2", "small-qwen3"])
def test_native_passes_keep_less(name: str, narrow: bool) -> None:
    """In bfloat16 half of what lies between operations, and a copy of each matrix."""
    native = pytest.importorskip("ossia.ops.cpu.training", reason="the native module is not built")
    decoder = built(name, native.NativeTraining())
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        found = kept(decoder)
    config, tokens = decoder.config, TOKENS.numel()
    layers = budget.layers(config, tokens, recompute=False, trained=Whole(True, narrow))
    assert found == pytest.approx(layers, rel=0.05)
    # A run on the CPU is told so; in float32 GPT-2's operations keep what torch's do.
    settings = Settings(dtype=Precision.BFLOAT16 if narrow else Precision.FLOAT32)
    estimate = budget.full(config, settings)
    usual = budget.full(config, settings, torch.device("cuda"))
    assert estimate.activations <= (0.7 if narrow else 1) * usual.activations
    assert estimate.weights == usual.weights


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("scores", [1 << 24, 1 << 19])
def test_attention_with_dropout_keeps_its_probabilities(
    scores: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in blocks. GPT-2 is published with it, and a row of 1,024 tokens keeps five times as
    much as without.
    """
    monkeypatch.setattr(attention, "SCORES", scores)
    monkeypatch.setattr(budget, "SCORES", scores)
    config = replace(PRESETS["small-gpt2"], vocab_size=300, dropout=Dropout(0.1, 0.1, 0.1))
    layer = config.layers[0]
    layer = replace(layer, attention=replace(layer.attention, window=window))
    config = replace(config, layers=(layer,) * 2, context_length=1024)
    decoder = Decoder(config, Training()).train()
    decoder.init_weights(torch.Generator().manual_seed(0))
    rows = torch.randint(300, (1, 1024), generator=torch.Generator().manual_seed(0))
    found = kept(decoder, rows)
    layers = budget.layers(config, rows.numel(), recompute=False, length=rows.shape[1])
    assert found == pytest.approx(layers, rel=0.15)
    settings = Settings(length=rows.shape[1], batch_size=1)
    assert budget.full(config, settings).activations > found


@pytest.mark.parametrize(
    ("name", "dropout", "rounded", "targets"),
    [
        ("small-gpt-oss", 0.0, False, ALL),
        ("small-gpt-oss", 0.1, False, (*ALL, "router")),
        ("small-gpt-oss", 0.0, True, ALL),
        ("small-gpt-oss", 0.1, True, ALL),
        ("small-gpt-oss", 0.1, False, ("attention",)),
        ("small-gpt2", 0.1, False, ALL),
        ("small-qwen3", 0.0, False, ALL),
        ("small-qwen3", 0.1, False, ALL),
    ],
)
def test_the_estimate_with_updates_is_what_torch_keeps(
    name: str, dropout: float, rounded: bool, targets: tuple[str, ...]
) -> None:
    learned = LoRA(4, 8.0, dropout, targets)
    decoder = adapted(name, learned, rounded)
    updates = Updates(learned, rounded)
    layers = budget.layers(decoder.config, TOKENS.numel(), recompute=False, trained=updates)
    assert kept(decoder) == pytest.approx(layers, rel=0.05)


@pytest.mark.parametrize("targets", [ALL, ("attention",), (*ALL, "router")])
def test_by_native_products_experts_keep_little(targets: tuple[str, ...]) -> None:
    if packing.native() is None:
        pytest.skip("the native module was not built")
    learned = LoRA(4, 8.0, 0.0, targets)
    decoder = adapted("small-gpt-oss", learned, False, Adapted())
    config, tokens = decoder.config, TOKENS.numel()
    updates = Updates(learned, native=True)
    layers = budget.layers(config, tokens, recompute=False, trained=updates)
    assert kept(decoder) == pytest.approx(layers, rel=0.05)
    if "experts" in targets:
        usual = budget.layers(config, tokens, recompute=False, trained=Updates(learned))
        assert layers < 0.6 * usual


@pytest.mark.parametrize("recompute", [False, True])
def test_experts_packed_with_their_updates_wait_only_where_nothing_is_recomputed(
    recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[StorageWeakRef] = []

    def quantize(weight: Matrix) -> tuple[MXFP4, float, float]:
        packed = packing.quantize_matrix(weight)
        made.append(StorageWeakRef(packed[0].blocks.untyped_storage()))
        return packed

    monkeypatch.setattr(rounded, "quantize_matrix", quantize)
    decoder = adapted("small-gpt-oss", LoRA(2, 4.0, 0.0, ALL), True)
    if recompute:
        decoder.recompute_layers()
    hidden = hidden_states(decoder, TOKENS, None)
    assert made
    assert all(storage.expired() == recompute for storage in made)
    hidden.sum().backward()
    assert all(storage.expired() for storage in made)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_estimate_of_a_run_counts_what_it_rounds_and_drops(
    recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "native", lambda: None)  # whose experts keep less if not rounded
    decoder = adapted("small-gpt-oss", LoRA(16, 32.0, 0.0, ALL), False)
    settings = FineTuneSettings(
        model="here", data="chats.jsonl", steps=9, length=64, lora=True, recompute=recompute
    )
    plain = estimate(decoder.config, settings)
    rounded = estimate(decoder.config, replace(settings, mxfp4_steps=1))
    layers = 1 if recompute else len(decoder.config.layers)
    packed = [b for name, b in decoder.named_buffers() if name.startswith("layers.0.feedforward.")]
    assert rounded.activations - plain.activations == layers * sum(b.nbytes for b in packed)
    assert rounded.weights == plain.weights
    dropped = estimate(decoder.config, replace(settings, lora_dropout=0.1))
    assert dropped.activations > plain.activations


@pytest.mark.parametrize(
    ("name", "rank", "tokens", "memory"),
    [
        ("gpt-oss-20b", 16, 8192, 24 << 30),
        ("gpt-oss-20b", 32, 2048, 24 << 30),
        ("gpt-oss-120b", 8, 4096, 80 * 10**9),
    ],
)
def test_lora_of_a_published_model_fits_a_card(
    name: str, rank: int, tokens: int, memory: int
) -> None:
    """By count. What the checkpoint holds lies on the card once, and little is wider there; a
    gigabyte is left to CUDA, the kernels' workspaces and fragments.
    """
    config = FAMILIES[name]
    settings = FineTuneSettings(
        model=name, data="chats.jsonl", lora=True, rank=rank, batch_size=tokens // 1024,
        length=1024, recompute=True, dtype=Precision.BFLOAT16,
    )  # fmt: skip
    found = estimate(config, settings, torch.device("cuda"))
    trained = found.gradients // 4
    stored = count(config).checkpoint_bytes
    assert stored < found.weights - 4 * trained < 1.01 * stored
    assert found.optimizer == 8 * trained
    assert found.total < memory - 10**9
    # An evaluation is in float32, and so are its logits and the matrix that gives them.
    last = 4 * config.vocab_size * config.hidden_size
    assert found.activations >= last + 4 * min(tokens * config.vocab_size, 1 << 28)
    assert found.total < estimate(config, settings).total
