"""Losses, gradients and formulas against implementations that are not ours."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from ossia import load_model
from ossia.config import ModelConfig
from ossia.model import Decoder
from ossia.ops import mxfp4
from ossia.ops.rounded import round_trip
from ossia.ops.training import Training
from ossia.train.balance import RouterLog, assignments, load_balance
from ossia.train.evaluate import HeldOut, SummedLoss, bits_per_byte, nats, windows
from ossia.train.optimizer import build_optimizers
from ossia.train.runs.presets import GptOssSizes, gpt_oss
from ossia.train.settings import Settings
from tests.transformers_models import configured


@pytest.fixture
def small() -> ModelConfig:
    config = gpt_oss(
        GptOssSizes(
            hidden=32,
            layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=16,
            experts=4,
            chosen=2,
            intermediate=32,
            window=8,
            context=64,
            original_context=16,
        )
    )
    return replace(config, vocab_size=50)


def gradient_of(module: torch.nn.Module, name: str) -> Tensor:
    gradient = module.get_parameter(name).grad
    assert gradient is not None
    return gradient


def test_gpt2_has_the_loss_and_gradients_of_transformers(tmp_path) -> None:
    torch.manual_seed(0)
    config = configured(
        GPT2Config,
        vocab_size=97,
        n_positions=32,
        n_embd=48,
        n_layer=2,
        n_head=3,
        attn_implementation="eager",
    )
    theirs = GPT2LMHeadModel(config).eval()  # without dropout
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, dtype=torch.float32).requires_grad_(True)
    tokens = torch.randint(97, (3, 25))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    loss = F.cross_entropy(ours(inputs).flatten(0, 1), targets.flatten())
    expected = theirs(tokens, labels=tokens).loss
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    expected.backward()
    whole, block, layer = theirs.transformer, theirs.transformer.h[1], "layers.1"
    query, key, value = gradient_of(block, "attn.c_attn.weight").T.chunk(3)
    pairs = {
        "embedding.weight": gradient_of(whole, "wte.weight"),
        "positions.weight": gradient_of(whole, "wpe.weight"),
        f"{layer}.attention.q.weight": query,
        f"{layer}.attention.k.weight": key,
        f"{layer}.attention.v.weight": value,
        f"{layer}.attention.o.bias": gradient_of(block, "attn.c_proj.bias"),
        f"{layer}.attention_norm.weight": gradient_of(block, "ln_1.weight"),
        f"{layer}.feedforward.up.weight": gradient_of(block, "mlp.c_fc.weight").T,
        f"{layer}.feedforward.down.weight": gradient_of(block, "mlp.c_proj.weight").T,
        "norm.bias": gradient_of(whole, "ln_f.bias"),
    }
    for name, gradient in pairs.items():
        difference = gradient_of(ours, name) - gradient
        assert difference.norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize(("experts", "chosen"), [(4, 1), (8, 2), (5, 3)])
def test_the_balance_loss_is_that_of_transformers(experts: int, chosen: int) -> None:
    """Also with padding, which has no gradient either."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, experts, generator=generator).requires_grad_()
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[0, 17:] = mask[2, 5:] = False
    for attended in (None, mask):
        theirs = load_balancing_loss_func((logits,), experts, chosen, attended)
        assert isinstance(theirs, Tensor)
        text = torch.ones(60, dtype=torch.bool) if attended is None else attended.flatten()
        # transformers counts assignments per token, Fedus et al. shares that sum to one.
        ours = load_balance(logits, chosen, text) * chosen
        torch.testing.assert_close(ours, theirs)
        (found,), (expected,) = (torch.autograd.grad(loss, logits) for loss in (ours, theirs))
        torch.testing.assert_close(found, expected)
        assert not found[~text].any()


def test_without_padding_the_balance_loss_is_the_plain_formula_bit_for_bit() -> None:
    logits = torch.randn(77, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    counts = logits.topk(2).indices.flatten().bincount(minlength=6).float()
    expected = 6 * (counts / counts.sum() * logits.softmax(-1).mean(0)).sum()
    found = load_balance(logits, 2, torch.ones(77, dtype=torch.bool))
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(loss, logits)[0] for loss in (found, expected)))


def test_processes_have_the_balance_loss_of_all_their_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the mean of their losses, however much of the padding each has."""
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    text = torch.ones(40, dtype=torch.bool)
    text[5:20] = text[37:] = False
    expected, counts = load_balance(logits, 2, text), assignments(logits, 2, text)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda share: share.copy_(counts))
    parts = zip(logits.chunk(2), text.chunk(2), strict=True)
    losses = [load_balance(part, 2, of_part) for part, of_part in parts]
    torch.testing.assert_close(torch.stack(losses).mean(), expected)


def test_an_even_router_has_a_balance_of_one_and_a_collapsed_one_of_experts() -> None:
    even, collapsed = 10 * torch.eye(8).repeat(4, 1), torch.tensor([[50.0, 0, 0, 0]]).repeat(9, 1)
    text = torch.ones(32, dtype=torch.bool)
    assert load_balance(even, 1, text) == pytest.approx(1)
    assert load_balance(collapsed, 1, text[:9]) == pytest.approx(4)
    assert load_balance(collapsed, 1, ~text[:9]) == 0  # there is nothing to balance


def test_the_router_log_hears_training_and_not_evaluation(small: ModelConfig) -> None:
    decoder = Decoder(small, Training())
    decoder.init_weights(torch.Generator().manual_seed(0))
    log = RouterLog(decoder)
    tokens = torch.arange(10)[None]
    with log.listening(tokens) as losses:
        decoder.eval()(tokens)
        assert not losses
        decoder.train()(tokens)
    decoder(tokens)  # nobody listens
    assert len(losses) == 2
    torch.stack(losses).sum().backward()
    for i in range(2):
        assert gradient_of(decoder, f"layers.{i}.feedforward.router.weight").norm() > 0


def summed(table: Tensor) -> SummedLoss:
    """The loss of a bigram model, by torch."""

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(table[inputs].flatten(0, 1), targets.flatten(), reduction="sum")

    return loss


def test_bits_per_byte_is_the_mean_over_bytes_however_windows_fall() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(11, 11, generator=generator)  # a bigram model: windows cost it nothing
    documents = [
        HeldOut("a", torch.randint(11, (30,), generator=generator), 40),
        HeldOut("b", torch.randint(11, (9,), generator=generator), 7),
    ]
    expected = {}
    for d in documents:
        steps = zip(d.tokens[:-1], d.tokens[1:], strict=True)
        expected[d.name] = -sum(table[i].log_softmax(-1)[j].item() for i, j in steps) / math.log(2)
    for length in (1, 4, 29, 64):
        bits = bits_per_byte(summed(table), documents, length)
        assert bits["a"] == pytest.approx(expected["a"] / 40, rel=1e-5)
        assert bits[""] == pytest.approx((expected["a"] + expected["b"]) / 47, rel=1e-5)


def test_windows_predict_every_token_once() -> None:
    inputs, targets = windows(torch.arange(8), 3)
    assert inputs.tolist() == [[0, 1, 2], [3, 4, 5], [6, 0, 0]]
    assert targets.tolist() == [[1, 2, 3], [4, 5, 6], [7, -100, -100]]
    loss = nats(summed(torch.zeros(8, 8)), torch.arange(8), 3)
    assert loss == pytest.approx(7 * math.log(8), rel=1e-5)


def test_quantized_training_sees_the_packed_values_and_moves_the_weights_beneath() -> None:
    weight = torch.randn(3, 4, 64, requires_grad=True)
    seen = round_trip(weight)
    packed = mxfp4.unpack(mxfp4.quantize(weight.detach()), torch.float32)
    torch.testing.assert_close(seen.detach(), packed, rtol=0, atol=1e-6)
    direction = torch.randn_like(seen)
    (seen * direction).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, direction)


def test_only_matrices_decay(small: ModelConfig) -> None:
    decoder = Decoder(small)
    (adamw,) = build_optimizers(decoder, Settings())
    matrices, others = adamw.param_groups
    names = {id(p): name for name, p in decoder.named_parameters()}
    assert {names[id(p)].rpartition(".")[2] for p in matrices["params"]} == {"weight"}
    assert all("norm" not in names[id(p)] for p in matrices["params"])
    kept = {names[id(p)] for p in others["params"]}
    assert "layers.0.feedforward.gate_up.bias" in kept
    assert "layers.0.attention.sinks" in kept
    assert others["weight_decay"] == 0
    assert len(matrices["params"]) + len(others["params"]) == len(names)
