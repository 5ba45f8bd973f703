"""One decoder, composed from a config: what it promises whatever the composition."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch

from ossia.config import (
    GELU,
    AttentionConfig,
    ClampedSwiGLU,
    Dropout,
    ExpertFormat,
    LayerConfig,
    LayerNorm,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    RMSNorm,
    RoPE,
    Router,
    SwiGLU,
    YaRN,
)
from ossia.insight.counts import tensors
from ossia.model import Decoder
from ossia.ops import REFERENCE, AttentionSpec
from tests.models import layer_of

ATTENTION = AttentionConfig(num_heads=6, num_kv_heads=2, head_dim=10)
MLP = MLPConfig(intermediate_size=24, activation=SwiGLU())
MOE = MoEConfig(
    num_experts=4,
    experts_per_token=2,
    intermediate_size=32,
    activation=ClampedSwiGLU(),
    router=Router.TOP_K_THEN_SOFTMAX,
    bias=True,
)
BASE = ModelConfig(
    vocab_size=50,
    hidden_size=32,
    context_length=64,
    layers=(LayerConfig(ATTENTION, MLP), LayerConfig(replace(ATTENTION, window=5), MLP)),
    position=RoPE(10000.0),
    norm=RMSNorm(),
    dtype="float32",
)


def layers(**attention) -> tuple[LayerConfig, ...]:
    return tuple(
        replace(layer, attention=replace(layer.attention, **attention)) for layer in BASE.layers
    )


def feedforwards(feedforward) -> tuple[LayerConfig, ...]:
    return tuple(replace(layer, feedforward=feedforward) for layer in BASE.layers)


# Every choice on its own, as the rungs of a ladder from GPT-2 to gpt-oss take them.
VARIANTS = {
    "base": BASE,
    "learned positions": replace(BASE, position=LearnedPositions()),
    "YaRN": replace(BASE, position=RoPE(10000.0, YaRN(4.0, 16))),
    "LayerNorm": replace(BASE, norm=LayerNorm()),
    "tied": replace(BASE, tied_embeddings=True),
    "sinks": replace(BASE, layers=layers(sinks=True)),
    "QK-norm": replace(BASE, layers=layers(qk_norm=True)),
    "LayerNorm, QK-norm": replace(BASE, norm=LayerNorm(), layers=layers(qk_norm=True)),
    "biases": replace(BASE, layers=layers(bias=True)),
    "GELU": replace(BASE, layers=feedforwards(MLPConfig(24, GELU(), bias=True))),
    "clamped": replace(BASE, layers=feedforwards(MLPConfig(24, ClampedSwiGLU()))),
    "experts": replace(BASE, layers=feedforwards(MOE)),
    "packed experts": replace(
        BASE, layers=feedforwards(replace(MOE, format=ExpertFormat.MXFP4, bias=False))
    ),
    "two head sizes": replace(
        BASE,
        layers=(BASE.layers[0], replace(BASE.layers[1], attention=replace(ATTENTION, head_dim=6))),
    ),
}


def build(config: ModelConfig, seed: int = 0) -> Decoder:
    decoder = Decoder(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for tensor in [*decoder.parameters(), *decoder.buffers()]:
        if tensor.dtype is torch.uint8:
            tensor.random_(100, 130, generator=generator)
        else:
            tensor.data.normal_(0, 0.2, generator=generator)
    return decoder


@pytest.fixture(params=VARIANTS)
def decoder(request) -> Decoder:
    return build(VARIANTS[request.param])


TOKENS = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(1))


def test_counts_know_every_parameter(decoder):
    counted = {tensor.name: tensor.shape for tensor in tensors(decoder.config)}
    assert counted == {name: tuple(x.shape) for name, x in decoder.state_dict().items()}


@torch.no_grad()
def test_no_token_sees_what_follows_it(decoder):
    changed = TOKENS.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 50
    before, after = decoder(TOKENS), decoder(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before[:, 12:], after[:, 12:])


@torch.no_grad()
def test_texts_of_a_batch_do_not_touch(decoder):
    alone = torch.cat([decoder(text[None]) for text in TOKENS])
    torch.testing.assert_close(decoder(TOKENS), alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_logits_are_float32_whatever_the_weights(decoder):
    logits = decoder.to(torch.bfloat16)(TOKENS)
    assert logits.dtype is torch.float32
    assert logits.shape == (3, 20, 50)


@torch.no_grad()
def test_a_decoder_can_be_copied_and_pickled(decoder):
    expected = decoder(TOKENS)
    assert torch.equal(copy.deepcopy(decoder)(TOKENS), expected)
    assert torch.equal(pickle.loads(pickle.dumps(decoder))(TOKENS), expected)


def test_every_parameter_is_trained(decoder):
    decoder.train()(TOKENS).square().mean().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        # A bias of the keys shifts all scores of a query alike: only sinks can tell.
        if not name.endswith("k.bias"):
            assert parameter.grad.abs().sum() > 0, name


def test_a_decoder_that_has_run_in_inference_mode_can_be_trained():
    decoder = build(replace(BASE, position=RoPE(12345.0)))  # its frequencies are first met here
    with torch.inference_mode():
        decoder(TOKENS)
    decoder(TOKENS).sum().backward()


def test_a_text_beyond_the_learned_positions_is_refused():
    decoder = build(VARIANTS["learned positions"])
    with pytest.raises(ValueError, match="65 tokens exceed the 64 learned positions"):
        decoder(torch.zeros(1, 65, dtype=torch.int64))


def test_gradients_of_attention_are_right_those_of_the_sinks_too():
    shapes = (1, 6, 4, 4), (1, 6, 2, 4), (1, 6, 2, 4), (4,)
    generator = torch.Generator().manual_seed(0)
    q, k, v, sinks = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    )

    def attend(q, k, v, sinks):
        return REFERENCE.attention(q, k, v, AttentionSpec(3, sinks))

    assert torch.autograd.gradcheck(attend, (q, k, v, sinks))


@pytest.mark.parametrize("kind", ["embedding", "attention", "residual"])
def test_each_dropout_acts_in_training_only(kind):
    decoder = build(replace(BASE, dropout=Dropout(**{kind: 0.3})))
    with torch.no_grad():
        assert torch.equal(decoder(TOKENS), build(BASE)(TOKENS))
        decoder.train()
        assert not torch.equal(decoder(TOKENS), decoder(TOKENS))


def test_start_values():
    config = replace(BASE, hidden_size=256, layers=BASE.layers * 4)
    decoder = Decoder(config)
    decoder.init_weights(torch.Generator().manual_seed(0))
    assert decoder.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    down = layer_of(decoder, 0).feedforward.down.weight
    assert down.std().item() == pytest.approx(0.02 / (2 * 8) ** 0.5, rel=0.05)
    assert (decoder.norm.weight == 1).all()


def test_packed_experts_cannot_be_initialised():
    with pytest.raises(ValueError, match="packed"):
        Decoder(VARIANTS["packed experts"]).init_weights()


LOGITS = torch.tensor([[0.1, 2.0, -1.0, 1.0]])


@pytest.mark.parametrize(
    ("router", "expected"),
    [
        (Router.TOP_K_THEN_SOFTMAX, LOGITS[0, [1, 3]].softmax(0)),
        (Router.SOFTMAX_THEN_TOP_K, LOGITS[0].softmax(0)[[1, 3]]),
        (Router.SOFTMAX_THEN_TOP_K_RENORMALIZED, LOGITS[0, [1, 3]].softmax(0)),
    ],
)
def test_the_order_of_softmax_and_top_k(router, expected):
    experts, weights = REFERENCE.route(LOGITS, MOE.experts_per_token, router)
    assert experts.tolist() == [[1, 3]]
    torch.testing.assert_close(weights[0], expected)
