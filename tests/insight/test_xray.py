"""The x-ray against `transformers` with the same weights: `output_attentions`, hidden states and
router logits; what it measures besides against plain formulas.
"""

import math
import weakref
from dataclasses import replace

import pytest
import torch

import ossia
from ossia.config import ClampedSwiGLU
from ossia.errors import OssiaError
from ossia.insight.xray import Look, Observed, Trace, XrayOptions, examine, run, xray
from ossia.insight.xray.live import Live
from ossia.insight.xray.reader import Reader
from ossia.ops import Backend
from ossia.ops.mxfp4 import quantize, unpack
from tests.models import build, gpt2_like, gpt_oss_like, moe_of, qwen3_like, qwen3_moe_like
from tests.transformers_models import CONFIGS, random_model

RAW = "qwen3 moe, weights not renormalised"
MOES = ("qwen3 moe", RAW, "gpt-oss")
WINDOW = 7


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """The name of a family, its model in transformers, ours of the same weights, and a text."""
    theirs = random_model(CONFIGS[request.param])
    theirs.set_attn_implementation("eager")
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    text = torch.randint(2, 101, (70,), generator=torch.Generator().manual_seed(1))
    text[40:60] = text[10:30]  # so that something repeats
    with torch.no_grad():
        extra = {"output_router_logits": True} if request.param in MOES else {}
        told = theirs(text[None], output_attentions=True, output_hidden_states=True, **extra)
    return request.param, theirs, ossia.load_model(folder), text, told


@pytest.fixture
def in_chunks(monkeypatch):
    """Texts are read 32 tokens at a time, so that pages of sliding layers are used again."""
    monkeypatch.setattr(run, "CHUNK", 32)


def looks(attention: torch.Tensor, text: torch.Tensor, near: int) -> torch.Tensor:
    """(heads, queries, looks) of probabilities (heads, queries, keys), one by one."""
    heads, length, _ = attention.shape
    out = torch.zeros(heads, length, len(Look))
    out[..., Look.SINK] = 1 - attention.sum(-1)
    for i in range(length):
        for j in range(i + 1):
            share = attention[:, i, j]
            if j == 0:
                look = Look.FIRST
            elif i - j < 2:
                look = Look.PREVIOUS if j < i else Look.SELF
            else:
                look = Look.NEAR if i - j < near else Look.FAR
            out[:, i, look] += share
            if j > 0 and text[j - 1] == text[i]:
                out[:, i, Look.REPEAT] += share
    return out


def close(found: torch.Tensor, expected: torch.Tensor, error: float = 2e-5) -> bool:
    return bool((found - expected).abs().max() <= error * max(1.0, float(expected.abs().max())))


class TestAgainstTransformers:
    def test_attention(self, pair, in_chunks):
        name, _, ours, text, told = pair
        trace = xray(ours, text, maps=("all",), effects=False)
        assert trace.near == (WINDOW if name == "gpt-oss" else 128)
        maps = trace.maps.view(*trace.head_mass.shape[:2], len(text), -1)
        for layer, attention in enumerate(told.attentions):
            expected = looks(attention[0], text, trace.near)
            assert close(trace.head_mass[layer], expected.mean(1))
            assert close(trace.token_mass[layer], expected.mean(0)[:, : Look.REPEAT])
            assert close(maps[layer].float(), attention[0], 1e-3)  # float16
        sinks = trace.head_mass[..., Look.SINK]
        assert (sinks.mean() > 0.02) == (name == "gpt-oss")

    def test_predictions(self, pair, in_chunks):
        _, _, ours, text, told = pair
        trace = xray(ours, text, top=5, effects=False)
        shares = told.logits[0].softmax(-1)
        top = shares.topk(5)
        assert torch.equal(trace.top_ids, top.indices.int())
        assert close(trace.top_logprobs, top.values.log(), 1e-4)
        assert close(trace.entropy, -(shares * shares.log()).sum(-1), 1e-4)
        for i in range(len(text) - 1):
            own = shares[i, text[i + 1]]
            assert trace.next_logprob[i] == pytest.approx(float(own.log()), rel=1e-4)
            assert trace.next_rank[i] == 1 + int((shares[i] > own).sum())
        assert trace.next_logprob[-1].isnan()
        assert trace.next_rank[-1] == 0
        loss = torch.nn.functional.cross_entropy(told.logits[0, :-1], text[1:])
        assert trace.loss == pytest.approx(float(loss), rel=1e-4)

    def test_the_lens_and_the_residual_stream(self, pair, in_chunks):
        name, theirs, ours, text, told = pair
        trace = xray(ours, text, lens=9, effects=False)
        assert trace.lens_positions.tolist() == sorted(set(trace.lens_positions.tolist()))
        assert (len(trace.lens_positions), int(trace.lens_positions[-1])) == (9, 69)
        norm = theirs.transformer.ln_f if name == "gpt2" else theirs.model.norm
        predicted = told.logits[0].argmax(-1)
        # The last of theirs has been normalised: it is not what the layer leaves.
        for n, states in enumerate(told.hidden_states[:-1]):
            x = states[0]
            assert close(trace.stream_norm[n], x.norm(dim=-1))
            largest = x.abs().max(-1)
            assert torch.equal(trace.stream_max_dim[n], largest.indices.int())
            assert close(trace.stream_max[n].abs(), largest.values)
            assert close(trace.stream_median[n], x.abs().median(-1).values)
            with torch.no_grad():
                logits = theirs.lm_head(norm(x))
            for i, at in enumerate(trace.lens_positions.tolist()):
                row = logits[at].log_softmax(-1)
                final = told.logits[0, at].log_softmax(-1)
                assert trace.lens_ids[n, i] == int(row.argmax())
                place = 1 + int((row > row[predicted[at]]).sum())
                assert trace.lens_rank[n, i] == place
                assert close(trace.lens_logprob[n, i], row[predicted[at]], 1e-4)
                if at < 69:
                    assert close(trace.lens_next_logprob[n, i], row[text[at + 1]], 1e-4)
                assert close(trace.lens_kl[n, i], (final.exp() * (final - row)).sum(), 1e-4)
        assert torch.equal(trace.lens_ids[-1], predicted[trace.lens_positions].int())
        assert bool((trace.lens_rank[-1] == 1).all())
        assert bool((trace.lens_rank.gather(0, trace.decided[None]) == 1).all())

    def test_experts(self, pair, in_chunks):
        name, _, ours, text, told = pair
        trace = xray(ours, text, lens=0, effects=False)
        if name not in MOES:
            assert trace.experts.numel() == trace.load.numel() == 0
            return
        for layer, logits in enumerate(told.router_logits):
            chosen = logits.softmax(-1).topk(3)
            assert torch.equal(trace.experts[layer], chosen.indices.int())
            total = 1 if name == RAW else chosen.values.sum(-1, keepdim=True)
            weights = chosen.values / total
            assert close(trace.expert_weights[layer], weights, 1e-4)
            for expert in range(trace.num_experts):
                uses = (chosen.indices == expert).any(-1)
                assert trace.load[layer, expert] == int(uses.sum())
                both = [(chosen.indices == e).any(-1) & uses for e in range(trace.num_experts)]
                expected = [int(b.sum()) for b in both]
                assert trace.together(layer)[expert].tolist() == expected


def models(dtype: torch.dtype):
    for config in (gpt2_like(), qwen3_like(), qwen3_moe_like(), gpt_oss_like()):
        decoder = build(config).to(dtype).requires_grad_(False).eval()
        yield decoder.on(ossia.ops.select("auto"))


class Blind:
    """An observer that looks at nothing."""

    def stream(self, index, x): ...
    def halfway(self, layer, x): ...
    def attention(self, layer, q, k, spec): ...
    def gated(self, layer, gate, up, activation): ...
    def experts(self, layer, x, routing, experts): ...


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_observed_pass_computes_the_same_bits(dtype):
    text = torch.randint(0, 97, (61,), generator=torch.Generator().manual_seed(3))
    for decoder in models(dtype):
        assert decoder.ops.name == ossia.ops.select("auto").name
        seen = decoder.on(Observed(decoder.ops, Blind()))
        assert torch.equal(seen(text[None]), decoder(text[None]))
        readers = [Reader(d, len(text), chunk=25) for d in (decoder, seen)]
        for part in text.split(25):
            plain, observed = (reader.read(part) for reader in readers)
            assert torch.equal(observed, plain)
        assert seen.ops.recorder() is None


def test_every_operation_of_a_backend_is_the_wrapped_ones():
    operations = {name for name in vars(Backend) if not name.startswith("_")} - {"name"}
    assert operations - {"recorder"} <= vars(Observed).keys()


def test_a_model_on_another_backend_shares_its_weights():
    decoder = build(gpt_oss_like()).eval()
    other = decoder.on(decoder.ops)
    ours, theirs = (dict(d.named_parameters()) for d in (decoder, other))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in ours)
    other.to_int8()
    assert other.is_int8
    assert not decoder.is_int8
    text = torch.arange(9)[None]
    assert torch.equal(other.on(decoder.ops)(text), other(text))  # int8 weights too


def test_pages_that_are_used_again_change_nothing(in_chunks):
    decoder = build(gpt_oss_like()).requires_grad_(False).eval()
    text = torch.randint(0, 97, (120,), generator=torch.Generator().manual_seed(4))
    trace = examine(decoder, text, XrayOptions(effects=False))
    logits = decoder(text[None])[0].unsqueeze(0)
    assert close(decoder.unembed(trace.hidden), logits[0], 1e-4)


class TestWhatItMeasures:
    def test_a_thumbnail_holds_the_largest_probability_of_each_cell(self, in_chunks, monkeypatch):
        monkeypatch.setattr(run, "_THUMBNAIL", 10)
        decoder = build(gpt_oss_like()).requires_grad_(False).eval()
        text = torch.randint(0, 97, (67,), generator=torch.Generator().manual_seed(5))
        trace = xray(decoder, text, maps=("1", "2.3"), effects=False)
        assert trace.map_heads.tolist() == [[1, h] for h in range(6)] + [[2, 3]]
        assert trace.thumbnails.shape == (4, 6, 10, 10)  # of 7 tokens
        for (layer, head), whole in zip(trace.map_heads.tolist(), trace.maps, strict=True):
            padded = torch.zeros(70, 70)
            padded[:67, :67] = whole.float()
            cells = padded.view(10, 7, 10, 7).amax((1, 3)) * 255
            assert (trace.thumbnails[layer, head] - cells).abs().max() <= 0.6

    def test_what_the_clamp_cuts(self):
        config = gpt_oss_like()
        activation = ClampedSwiGLU(limit=0.5)
        layers = tuple(
            replace(layer, feedforward=replace(layer.feedforward, activation=activation))
            for layer in config.layers
        )
        decoder = build(replace(config, layers=layers)).requires_grad_(False).eval()
        seen = []

        class Spy(type(decoder.ops)):
            def gated(self, gate, up, activation):
                if activation == ClampedSwiGLU(limit=0.5):
                    seen.append((gate, up))
                return super().gated(gate, up, activation)

        text = torch.arange(20)
        decoder.on(Spy())(text[None])
        trace = xray(decoder, text, effects=False)
        for layer, (gate, up) in enumerate(seen):
            expected = [gate.numel(), int((gate > 0.5).sum()), int((up.abs() > 0.5).sum())]
            assert trace.clamp_counts[layer].tolist() == expected
            assert 0 < expected[1] < expected[0]
        assert trace.clamp_choices.tolist() == [[40, 40]] * 4
        assert float(trace.clamp_change.min()) >= 0
        assert float(trace.clamp_change.mean()) > 0.01
        assert xray(decoder, text, effects=False, clamp=False).clamp_counts.sum() == 0

    def test_the_share_of_experts_that_a_batch_touches(self):
        decoder = build(gpt_oss_like()).requires_grad_(False).eval()
        text = torch.randint(0, 97, (30,), generator=torch.Generator().manual_seed(6))
        trace = xray(decoder, text, effects=False)
        for batch in (1, 2, 7, 30):
            for layer in range(4):
                alone = [
                    math.comb(30 - n, batch) / math.comb(30, batch)
                    for n in trace.load[layer].tolist()
                ]
                expected = 1 - sum(alone) / len(alone)
                assert float(trace.touched(batch)[layer]) == pytest.approx(expected, rel=1e-5)

    def test_the_effects_of_lower_precision(self):
        config = replace(gpt_oss_like(), hidden_size=32)
        layers = tuple(
            replace(layer, feedforward=replace(layer.feedforward, intermediate_size=64))
            for layer in config.layers
        )
        decoder = build(replace(config, layers=layers)).requires_grad_(False).eval()
        text = torch.randint(0, 97, (25,), generator=torch.Generator().manual_seed(7))
        found = xray(decoder, text).differences
        assert list(found) == ["int8 keys and values", "int8 dense weights", "MXFP4 experts"]
        own = decoder(text[None])[0]
        packed = decoder.on(decoder.ops)
        for layer in range(4):
            for experts in (moe_of(packed, layer).gate_up, moe_of(packed, layer).down):
                experts.replace(unpack(quantize(experts.weight), torch.float32))
        int8 = decoder.on(decoder.ops)
        int8.to_int8()
        for name, other in (("MXFP4 experts", packed), ("int8 dense weights", int8)):
            logits = other(text[None])[0]
            kl = torch.nn.functional.kl_div(
                logits.log_softmax(-1), own.log_softmax(-1), log_target=True, reduction="none"
            ).sum(-1)
            assert close(found[name].kl, kl, 1e-3)
            assert torch.equal(found[name].agrees, own.argmax(-1) == logits.argmax(-1))
            assert close(found[name].largest, (own - logits).abs().amax(-1), 1e-3)
        assert 0 < float(found["int8 keys and values"].kl.mean()) < 0.1

    def test_one_layer_at_a_time_exists_in_lower_precision(self):
        alive, most = weakref.WeakSet(), [0]

        class Counting(Backend):
            def quantize(self, weight):
                quantized = super().quantize(weight)
                alive.add(quantized.codes)
                most[0] = max(most[0], len(alive))
                return quantized

        decoder = build(gpt_oss_like()).requires_grad_(False).eval()
        xray(decoder.on(Counting()), torch.arange(20))
        of_a_layer = 4  # queries, keys, values and output
        assert most[0] == of_a_layer + 1  # and the unembedding
        assert not alive


@pytest.mark.parametrize("config", [gpt2_like(), qwen3_moe_like(), gpt_oss_like()])
def test_a_text_that_grows_is_seen_as_the_whole_is(config):
    decoder = build(config).requires_grad_(False).eval()
    text = torch.randint(0, 97, (80,), generator=torch.Generator().manual_seed(8))
    trace = xray(decoder, text, effects=False)
    live = Live(decoder, 80)
    readings = [live.read(part.tolist()) for part in text.split([1, 1, 40, 3, 35])]
    found = [reading for part in readings for reading in part]
    assert [reading.token for reading in found] == text.tolist()
    assert found[0][1:4] == (None, None, None)
    for t, reading in enumerate(found[1:], 1):
        assert reading.logprob == pytest.approx(float(trace.next_logprob[t - 1]), abs=1e-3)
        assert reading.entropy == pytest.approx(float(trace.entropy[t - 1]), abs=1e-3)
        assert reading.rank == trace.next_rank[t - 1]
    mass = torch.tensor([reading.attention for reading in found])
    assert close(mass, trace.token_mass.mean(0), 1e-4)
    if trace.num_experts:
        experts = torch.tensor([reading.experts for reading in found]).transpose(0, 1)
        assert torch.equal(experts.int(), trace.experts)


class TestExport:
    @pytest.fixture
    def trace(self):
        decoder = build(gpt_oss_like()).requires_grad_(False).eval()
        return xray(decoder, torch.arange(24), maps=("0.1",))

    def test_a_saved_trace_is_the_same(self, trace, tmp_path):
        numpy = pytest.importorskip("numpy")
        trace.save(tmp_path / "trace.npz")
        read = Trace.load_from(tmp_path / "trace.npz")
        for name, value in vars(trace).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(getattr(read, name).nan_to_num(7), value.nan_to_num(7)), name
        assert (read.near, read.num_experts) == (9, 5)
        assert read.differences.keys() == trace.differences.keys()
        for name, one in trace.differences.items():
            assert torch.equal(read.differences[name].kl, one.kl)
        with numpy.load(tmp_path / "trace.npz") as file:
            assert file["head_mass"].shape == (4, 6, 7)
        numpy.savez(tmp_path / "other.npz", tokens=[1])
        with pytest.raises(OssiaError, match=r"other\.npz is not an x-ray"):
            Trace.load_from(tmp_path / "other.npz")

    def test_a_dataframe_has_a_row_for_each_token(self, trace):
        frame = pytest.importorskip("pandas").DataFrame(trace.columns())
        assert frame.equals(trace.to_dataframe())
        assert len(frame) == 24
        assert frame["token"].tolist() == list(range(24))
        looks = [name for name in frame if name.startswith("attention_")]
        assert frame[looks].sum(axis=1).tolist() == pytest.approx([1.0] * 24, abs=1e-5)
        assert frame["experts_3"][5] == trace.experts[3, 5].tolist()


class TestWrongInput:
    @pytest.fixture
    def decoder(self):
        return build(gpt_oss_like()).requires_grad_(False).eval()

    @pytest.mark.parametrize(
        ("tokens", "message"),
        [
            ([], "the text is empty"),
            (list(range(97)) * 2, "the text has 194 tokens, and the model's context is 128"),
            ([3, 97], "token id 97 is outside the model's vocabulary of 97"),
            ([3, -1], "token id -1 is outside"),
            ([0.5], r"tokens are the ids of one text, not float32 \(1,\)"),
            ([[1, 2], [3, 4]], r"tokens are the ids of one text, not int64 \(2, 2\)"),
            ("text", "tokens are the ids of one text: "),
        ],
    )
    def test_tokens(self, decoder, tokens, message):
        with pytest.raises(OssiaError, match=message):
            xray(decoder, tokens)

    @pytest.mark.parametrize("name", ["4", "0.6", "x", "1.2.3", ""])
    def test_maps_of_heads_that_do_not_exist(self, decoder, name):
        message = "LAYER or all; there are layers 0 to 3, with heads 0 to 5"
        with pytest.raises(OssiaError, match=message):
            xray(decoder, [1], maps=(name,))

    def test_unknown_options(self, decoder):
        with pytest.raises(OssiaError, match="unknown option map; the options are top, lens, maps"):
            xray(decoder, [1], map="all")

    def test_one_token_is_enough(self, decoder):
        trace = xray(decoder, [5], maps=("all",))
        assert math.isnan(trace.loss)
        assert trace.maps.shape == (24, 1, 1)
        assert close(trace.head_mass.sum(-1), torch.ones(4, 6))
