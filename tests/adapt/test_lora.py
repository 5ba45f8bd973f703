"""LoRA: peft and transformers compute what ours does, and nothing but the updates is learned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from ossia import checkpoint, load_model
from ossia.adapt import adapters, convert, lora
from ossia.config import ExpertFormat, expert_formats
from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.ops import mxfp4
from ossia.train.runs.finetune import FineTuning
from ossia.train.settings import FineTuneSettings
from tests.transformers_models import VOCAB, gpt2, gpt_oss, qwen3_moe

peft = pytest.importorskip("peft")

ALL = lora.LoRA(3, 6.0, 0.0, ("attention", "mlp", "experts", "router"))
FOUR = replace(ALL, rank=4)
TOKENS = torch.randint(VOCAB - 1, (2, 30), generator=torch.Generator().manual_seed(5))


def qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=128,
        )
    )


FAMILIES = [gpt2, qwen3, gpt_oss, qwen3_moe]


@pytest.fixture
def their_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    theirs = request.param()
    folder = tmp_path / "theirs"
    theirs.save_pretrained(folder)
    return folder


def their_model(folder: Path) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def learned(folder: Path, settings: lora.LoRA = ALL) -> Decoder:
    """Ours with updates that are not zero."""
    decoder = lora.load_base(folder)
    generator = torch.Generator().manual_seed(1)
    lora.attach(decoder, settings, generator)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(0, 0.1, generator=generator)
    return decoder.eval()


@torch.no_grad()
def logits(model: Decoder | PreTrainedModel) -> Tensor:
    out = model(TOKENS)
    return out if isinstance(out, Tensor) else out.logits


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("their_folder", FAMILIES, indirect=True)
def test_peft_computes_what_ours_does(their_folder: Path, tmp_path: Path) -> None:
    decoder = learned(their_folder)
    before, ours = logits(their_model(their_folder)), logits(decoder)
    assert (ours - before).abs().max() > 0.01
    adapters.save(decoder, tmp_path / "adapter", ALL, "theirs")
    theirs = peft.PeftModel.from_pretrained(their_model(their_folder), tmp_path / "adapter")
    close(logits(theirs), ours)


@pytest.mark.parametrize("their_folder", FAMILIES, indirect=True)
def test_what_was_saved_is_loaded_and_merged(their_folder: Path, tmp_path: Path) -> None:
    decoder = learned(their_folder)
    adapters.save(decoder, tmp_path / "adapter", ALL, "theirs")
    again = lora.load_base(their_folder)
    adapters.load(again, tmp_path / "adapter")
    close(logits(again.eval()), logits(decoder))
    has_experts = expert_formats(decoder.config)
    experts = "dense" if has_experts else None
    assert checkpoint.save(decoder, tmp_path / "whole", experts=experts, dtype=torch.float32) == {}
    close(logits(load_model(tmp_path / "whole", backend="reference")), logits(decoder))
    close(logits(their_model(tmp_path / "whole")), logits(decoder))


def of_peft(model: PreTrainedModel, folder: Path, **config) -> Tensor:
    """Save an adapter that peft made; the logits with it."""
    torch.manual_seed(2)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    wrapped.save_pretrained(folder)
    return logits(wrapped.eval())


@pytest.mark.parametrize(
    ("their_folder", "config"),
    [
        (gpt2, {"target_modules": ["c_attn", "attn.c_proj"], "fan_in_fan_out": True, "r": 4}),
        (qwen3, {"target_modules": "all-linear", "r": 4, "use_rslora": True}),
        (qwen3, {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"v_proj": 2}}),
        (gpt_oss, {"target_parameters": ["mlp.experts.down_proj"], "target_modules": ["o_proj"]}),
    ],
    indirect=["their_folder"],
)
def test_adapters_that_peft_made_are_loaded(
    their_folder: Path, config: dict, tmp_path: Path
) -> None:
    expected = of_peft(their_model(their_folder), tmp_path / "adapter", **config)
    decoder = lora.load_base(their_folder)
    adapters.load(decoder, tmp_path / "adapter")
    close(logits(decoder.eval()), expected)


@pytest.mark.parametrize("their_folder", [qwen3], indirect=True)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "not a LoRA adapter"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"bias": "all"}, "trained biases are not supported"),
        ({"remove": True}, "adapter_model.safetensors: cannot be read"),
        ({"other": True}, "is not of this model's sizes"),
        ({"surplus": True}, "belongs to no matrix of this model"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(
    change: dict, message: str, their_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    adapters.save(learned(their_folder), folder, ALL, "theirs")
    weights = folder / adapters.WEIGHTS
    tensors = adapters.load_file(weights)
    first = next(iter(tensors))
    if change.pop("remove", False):
        weights.unlink()
    if change.pop("other", False):
        adapters.save_file(tensors | {first: torch.zeros(3, 5)}, weights)
    if change.pop("surplus", False):
        adapters.save_file(tensors | {"base_model.model.x.lora_A.weight": torch.ones(1)}, weights)
    config = json.loads((folder / adapters.CONFIG).read_text())
    (folder / adapters.CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(OssiaError, match=message):
        adapters.load(lora.load_base(their_folder), folder)


@pytest.mark.parametrize("their_folder", [gpt_oss], indirect=True)
@pytest.mark.parametrize("left", [3, 2, 1])  # of four; also where the rank could be another
def test_an_adapter_of_fewer_experts_is_refused(
    left: int, their_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    adapters.save(learned(their_folder, FOUR), folder, FOUR, "theirs")
    tensors = adapters.load_file(folder / adapters.WEIGHTS)
    for name, factor in tensors.items():
        if ".experts." in name:
            some = factor[: left * 4] if "lora_A" in name else factor[:, : left * 4]
            tensors[name] = some.contiguous()
    adapters.save_file(tensors, folder / adapters.WEIGHTS)
    with pytest.raises(OssiaError, match=r"mlp\.experts\..*A\.weight is not of this .* of rank 4"):
        adapters.load(lora.load_base(their_folder), folder)


def test_a_new_adapter_changes_nothing(base: Path) -> None:
    before = logits(load_model(base, dtype="float32", backend="reference"))
    decoder = lora.load_base(base)
    lora.attach(decoder, ALL, torch.Generator().manual_seed(0))
    close(logits(decoder.eval()), before)
    experts = decoder.get_submodule("layers.0.feedforward.gate_up")
    assert experts.blocks.dtype == torch.uint8  # still packed
    trained = {name for name, p in decoder.named_parameters() if p.requires_grad}
    assert all(name.endswith(("lora_a", "lora_b")) for name in trained)


@pytest.mark.parametrize("mxfp4_steps", [0, 20])
def test_a_model_with_packed_experts_learns_and_is_packed_again(
    mxfp4_steps: int,
    base: Path,
    settings: FineTuneSettings,
    tmp_path: Path,
) -> None:
    settings = replace(settings, lora=True, merge=True, rank=4, alpha=8.0)
    settings = replace(settings, mxfp4_steps=mxfp4_steps)
    out = tmp_path / "out"
    run = FineTuning.start(replace(settings, learning_rate=2e-2), out)
    assert run.train()
    (out / "adapter").mkdir()  # as a process leaves it that was killed while it wrote
    record = run.export()
    loss = record["held_out_loss"]
    assert loss["as_trained"] < 0.8 * loss["before"]
    assert loss["as_saved"] < 0.9 * loss["before"]
    assert checkpoint.read_config(out) == checkpoint.read_config(base)
    parameters = record["parameters"]
    assert parameters["trained"] == sum(p.numel() for _, p in trained_of(run))
    # The error is that of the formula, on the sum of base and update.
    (name, weight), *_ = [x for x in lora.updates(run.decoder) if x[0].endswith("gate_up")]
    assert isinstance(weight.base, mxfp4.MXFP4)
    sums = mxfp4.unpack(weight.base, torch.float32) + weight.scale * weight.b @ weight.a
    lost = mxfp4.unpack(mxfp4.quantize(sums), torch.float32) - sums
    assert record["quantization_error"][name] == pytest.approx((lost.norm() / sums.norm()).item())
    assert len(record["quantization_error"]) == 4
    # The adapter beside it, on the base that is still packed, is the trained model.
    again = lora.load_base(base)
    adapters.load(again, out / "adapter")
    with torch.no_grad():
        tokens = torch.arange(60).view(2, 30)
        close(again.eval()(tokens), run.decoder.eval()(tokens))


def test_the_adapter_alone_is_saved_and_merges_into_what_was_trained(
    base: Path, settings: FineTuneSettings, tmp_path: Path, monkeypatch
) -> None:
    settings = replace(settings, lora=True, rank=4, alpha=8.0, learning_rate=2e-2, steps=10)
    out, merged = tmp_path / "out", tmp_path / "merged"
    run = FineTuning.start(settings, out)
    assert run.decoder.ops.name == "adapted"  # by the native kernels, where they were built
    run.train()
    trained = {name: p.detach().clone() for name, p in trained_of(run)}
    run.model["ends"] = [7]  # as of a base model, whose template's end is none of its own
    record = run.export()
    assert {file.name for file in out.iterdir()} == {"adapter", "record.json"}
    assert record["saved"]["checkpoint"] is False
    assert record["saved"]["adapter_bytes"] > 4 * record["parameters"]["trained"]
    assert record["held_out_loss"]["as_saved"] == pytest.approx(
        record["held_out_loss"]["as_trained"], rel=1e-4
    )
    assert all(torch.equal(p, trained[name]) for name, p in trained_of(run))
    with pytest.raises(OssiaError, match=f"holds an adapter: ossia merge .* {out}/adapter merged"):
        checkpoint.find(out)
    convert.merge(str(base), out / "adapter", merged)
    assert 7 in json.loads((merged / "generation_config.json").read_text())["eos_token_id"]
    whole = FineTuning.start(replace(settings, merge=True), tmp_path / "whole")
    whole.train()
    assert whole.export()["saved"]["checkpoint"] is True
    folders = merged, tmp_path / "whole"
    ours, theirs = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_format_of_experts_needs_a_checkpoint(settings: FineTuneSettings, tmp_path) -> None:
    settings = replace(settings, lora=True, experts=ExpertFormat.DENSE)
    with pytest.raises(OssiaError, match="--experts needs --merge"):
        FineTuning.start(settings, tmp_path / "out")


def trained_of(run: FineTuning) -> list[tuple[str, Tensor]]:
    return [(name, p) for name, p in run.decoder.named_parameters() if p.requires_grad]


def test_a_stopped_run_resumes_bit_for_bit(
    settings: FineTuneSettings,
    tmp_path: Path,
) -> None:
    settings = replace(settings, lora=True, rank=2, lora_dropout=0.1, mxfp4_steps=4, steps=8)
    settings = replace(settings, recompute=True, accumulate=2)
    whole = FineTuning.start(settings, tmp_path / "whole")
    whole.train()
    run = FineTuning.start(settings, tmp_path / "parts")
    run.train(stopped=lambda: run.trainer.progress.step == 5)
    torch.manual_seed(99)
    resumed = FineTuning.resume(tmp_path / "parts")
    assert resumed.trainer.progress.step == 5
    assert resumed.train()
    pairs = zip(trained_of(resumed), trained_of(whole), strict=True)
    assert all(torch.equal(one, other) for (_, one), (_, other) in pairs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": "heads"}, "--targets must be some of attention, mlp, experts, not 'heads'"),
        ({"targets": "mlp"}, "--targets mlp: the model has no such matrices"),
        ({"rank": 0}, "--rank must be at least 1"),
        ({"alpha": 0.0}, "--alpha must be above 0"),
        ({"lora_dropout": 1.0}, "--lora-dropout must be at least 0 and below 1, not 1"),
        ({"optimizer": "muon"}, "--lora goes with neither --optimizer muon"),
        ({"targets": "attention", "mxfp4_steps": 1}, "--mxfp4-steps needs experts among"),
    ],
)
def test_bad_settings_are_refused(
    change: dict,
    message: str,
    settings: FineTuneSettings,
    tmp_path: Path,
) -> None:
    with pytest.raises(OssiaError) as error:
        FineTuning.start(replace(settings, lora=True, **change), tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_router_has_an_update_where_asked(
    settings: FineTuneSettings,
    tmp_path: Path,
) -> None:
    settings = replace(settings, lora=True, steps=1, warmup=0)
    for asked in (False, True):
        run = FineTuning.start(replace(settings, train_router=asked), tmp_path / str(asked))
        assert any("router" in name for name, _ in trained_of(run)) == asked


def test_the_estimate_counts_packed_experts_as_they_lie(
    settings: FineTuneSettings,
    tmp_path: Path,
) -> None:
    run = FineTuning.start(replace(settings, lora=True, rank=2), tmp_path / "out")
    held = [*run.decoder.parameters(), *run.decoder.buffers()]
    assert run.estimate.weights == sum(value.nbytes for value in held)
    trained = sum(value.nbytes for _, value in trained_of(run))
    assert (run.estimate.gradients, run.estimate.optimizer) == (trained, 2 * trained)
