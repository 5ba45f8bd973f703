"""Packing experts and merging adapters: what is written, error and loss, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ossia import checkpoint, load_model
from ossia.adapt import adapters, convert, lora
from ossia.cli.main import main
from ossia.config import ExpertFormat
from ossia.errors import OssiaError
from ossia.ops import mxfp4
from ossia.system.records import to_json
from ossia.train.held_out import loss_on
from tests.models import build, small
from tests.scripted import VOCAB_SIZE, write_byte_tokenizer
from tests.training import chats
from tests.transformers_models import gpt2, qwen3_moe

TOKENS = torch.randint(VOCAB_SIZE, (2, 30), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """A tiny gpt-oss with dense experts, in bfloat16 as published fine-tuned ones are."""
    config = replace(small(), vocab_size=VOCAB_SIZE, context_length=512)
    folder = tmp_path / "unpacked"
    checkpoint.save(build(config).to(torch.bfloat16), folder)
    write_byte_tokenizer(folder)
    return folder


def test_experts_are_packed_and_the_error_and_the_losses_are_measured(
    unpacked: Path, tmp_path: Path
) -> None:
    out, file = tmp_path / "out", tmp_path / "text.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 5)
    record = convert.quantize(str(unpacked), out, loss_on(str(file), str(unpacked)))
    assert to_json(record) == json.loads((out / "quantization.json").read_text())
    before, after = checkpoint.load(unpacked), checkpoint.load(out)
    for name in ("layers.0.feedforward.gate_up", "layers.1.feedforward.down"):
        weight = before.get_parameter(f"{name}.weight").float()
        packed = mxfp4.quantize(weight)
        assert torch.equal(after.get_buffer(f"{name}.blocks"), packed.blocks)
        assert torch.equal(after.get_buffer(f"{name}.scales"), packed.scales)
        lost = mxfp4.unpack(packed, torch.float32) - weight
        expected = float(lost.norm() / weight.norm())
        assert record.quantization_error[name] == pytest.approx(expected, rel=1e-5)
    assert len(record.quantization_error) == 4
    assert (out / "tokenizer.json").exists()
    tokens = torch.tensor([list(ids_of(out, file.read_text()))])
    for model, name in ((before, "before"), (after, "after")):
        with torch.no_grad():
            logits = model(tokens)[0, :-1].float()
        expected = torch.nn.functional.cross_entropy(logits, tokens[0, 1:])
        assert getattr(record.held_out_loss, name) == pytest.approx(float(expected), rel=1e-2)


def ids_of(folder: Path, content: str) -> list[int]:
    from ossia import text

    return text.load_tokenizer(folder).encode(content)


def test_the_loss_may_be_of_conversations(unpacked: Path, tmp_path: Path) -> None:
    file = chats(tmp_path / "chats.jsonl", 3)
    measured = loss_on(str(file), str(unpacked))
    loss = convert.quantize(str(unpacked), tmp_path / "out", measured).held_out_loss
    assert loss is not None
    assert loss.unit == "nats per learned token"
    assert all(0 < value < 3 * math.log(VOCAB_SIZE) for value in (loss.before, loss.after))
    assert loss.before != loss.after


@pytest.mark.parametrize("experts", [None, ExpertFormat.DENSE])
def test_an_adapter_is_merged_into_packed_experts_and_transformers_loads_them(
    experts: ExpertFormat | None, base: Path, tmp_path: Path
) -> None:
    decoder = lora.load_base(base)
    settings = lora.LoRA(4, 8.0, 0.0, ("attention", "experts"))
    lora.attach(decoder, settings, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
        expected = decoder.eval()(TOKENS)
    adapters.save(decoder, tmp_path / "adapter", settings, "base")
    record = convert.merge(str(base), tmp_path / "adapter", tmp_path / "out", experts)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ours = load_model(tmp_path / "out", dtype="float32", backend="reference")
    with torch.no_grad():
        found = ours(TOKENS)
        scale = float(expected.abs().max())
        torch.testing.assert_close(theirs(TOKENS).logits.float(), found, rtol=0, atol=0.05 * scale)
        # Rounded to bfloat16 and, if packed, to four bits: near what the adapter computes.
        near = (found - expected).abs().mean() / expected.abs().mean()
    assert near < (0.02 if experts is ExpertFormat.DENSE else 0.3)
    assert len(record.quantization_error) == (0 if experts is ExpertFormat.DENSE else 4)
    format = ours.config.layers[0].feedforward.format  # type: ignore[union-attr]
    assert format is (experts or ExpertFormat.MXFP4)


def test_what_cannot_be_packed_is_refused(base: Path, unpacked: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for build_theirs in (gpt2, qwen3_moe):
        build_theirs().save_pretrained(tmp_path / build_theirs.__name__)
    out = tmp_path / "out"
    for model, data, message in (
        (base, "", "its experts are already in MXFP4"),
        (tmp_path / "gpt2", "", "the model has no experts to pack"),
        (tmp_path / "qwen3_moe", "", "the experts cannot be saved as mxfp4"),
        (unpacked, "absent.txt", "--data absent.txt: No such file"),
        (unpacked, "absent.jsonl", "--data absent.jsonl: no such file"),
        ("./absent", "", "there is no folder"),
    ):
        with pytest.raises(OssiaError, match=message):
            convert.quantize(str(model), out, loss_on(data, str(model)) if data else None)
    with pytest.raises(OssiaError, match="not an empty folder"):
        convert.quantize(str(unpacked), base)
    with pytest.raises(OssiaError, match=r"adapter_config\.json"):
        convert.merge(str(base), tmp_path / "absent", out)
    assert not out.exists()


def test_the_command_prints_errors_and_losses(
    unpacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = chats(tmp_path / "chats.jsonl", 3)
    assert main(["quantize", str(unpacked), str(tmp_path / "out"), "--data", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "layers.0.feedforward.gate_up" in printed
    assert "nats per learned token before" in printed
    assert main(["quantize", str(unpacked), str(tmp_path / "out"), "--json"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
