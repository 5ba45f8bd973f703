"""Fine-tuning: only replies are learned, packed as if alone; runs resume; what is saved loads."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM

from ossia import checkpoint, load_model, text
from ossia.errors import OssiaError
from ossia.train import budget
from ossia.train.corpus import packing
from ossia.train.corpus.conversations import Example
from ossia.train.corpus.packing import Rows, nats_per_token, pack
from ossia.train.evaluate import loss_of
from ossia.train.loss import IGNORED
from ossia.train.objective import Objective
from ossia.train.runs.finetune import FineTuning, dense
from ossia.train.settings import FineTuneSettings
from tests.models import build, small
from tests.training import chats


def weights(run: FineTuning) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.decoder.state_dict().items()}


def examples(count: int, longest: int) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for n in range(count):
        ids = torch.randint(50, (2 + (7 * n) % (longest - 1),), generator=generator)
        targets = ids[1:].clone()
        targets[: len(targets) // 2] = IGNORED
        made.append(Example(str(n), ids[:-1], targets))
    return made


def test_rows_hold_every_text_once_and_no_more_than_fits() -> None:
    lengths = [len(example) for example in examples(60, 30)]
    rows = pack(lengths, 32)
    assert sorted(number for row in rows for number in row) == list(range(60))
    assert all(sum(lengths[n] for n in row) <= 32 for row in rows)
    assert len(rows) <= -(-sum(lengths) // 32) + 1


def test_batches_are_functions_of_the_step_and_see_each_row_once_a_pass(tmp_path: Path) -> None:
    count = packing.write(tmp_path / "rows", examples(60, 30), 32)
    rows = Rows(tmp_path / "rows", 32, batch_size=1, seed=3)
    assert len(rows) == count
    first = [rows(step).inputs.sum().item() for step in range(count)]
    second = [rows(step).inputs.sum().item() for step in range(count, 2 * count)]
    assert sorted(first) == sorted(second)
    assert first != second
    again = Rows(tmp_path / "rows", 32, batch_size=1, seed=3)
    assert [again(step).inputs.sum().item() for step in reversed(range(count))] == first[::-1]


def test_a_packed_batch_has_the_loss_and_the_gradient_of_its_texts_alone(tmp_path: Path) -> None:
    """In plain torch: each text by itself, cross-entropy of its targets, over all targets."""
    texts = examples(9, 20)
    packing.write(tmp_path / "rows", texts, 40)
    rows = Rows(tmp_path / "rows", 40, batch_size=2)
    assert len(rows) < 5
    batch = rows.batch(range(len(rows)))
    decoder = build(small())
    count = sum(example.learned for example in texts)
    objective = Objective(decoder, balance=0.0, z_loss=0.0).train()
    losses = objective(batch.inputs, batch.targets, batch.documents, count)
    losses.total.backward()
    found = {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}
    decoder.zero_grad()
    summed = torch.zeros(())
    for example in texts:
        logits = decoder(example.inputs[None])[0]
        summed = summed + torch.nn.functional.cross_entropy(
            logits, example.targets, ignore_index=IGNORED, reduction="sum"
        )
    alone = summed / count
    torch.testing.assert_close(losses.cross_entropy, alone.detach(), rtol=1e-5, atol=0)
    alone.backward()
    for name, parameter in decoder.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
    held_out = nats_per_token(loss_of(decoder), rows)
    assert held_out == pytest.approx(alone.item(), rel=1e-5)


def test_a_model_learns_to_answer_and_the_record_says_how_well(
    settings: FineTuneSettings, base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = FineTuning.start(replace(settings, mxfp4_steps=10), out)
    assert run.train()
    record = run.export()
    assert record == json.loads((out / "record.json").read_text())
    loss = record["held_out_loss"]
    assert loss["as_trained"] < 0.7 * loss["before"]
    assert loss["as_saved"] == pytest.approx(loss["as_trained"], rel=0.05)
    assert record["curve"][0]["held_out_loss"] == loss["before"]
    assert [entry["step"] for entry in record["curve"]] == [0, 10, 20]
    counts = record["data"]
    assert counts["train"]["conversations"] == 38
    assert counts["held_out"]["conversations"] == 2
    assert counts["train"]["learned"] < counts["train"]["tokens"]
    assert not (out / "training").exists()
    assert (out / "generation_config.json").read_bytes() == (
        base / "generation_config.json"
    ).read_bytes()
    # The experts are packed again, and routers are as they were.
    assert checkpoint.read_config(out) == checkpoint.read_config(base)
    before, after = checkpoint.load(base).state_dict(), checkpoint.load(out).state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {
        f"layers.{i}.feedforward.router.{x}" for i in (0, 1) for x in ("weight", "bias")
    }
    assert record["parameters"]["total"] == sum(p.numel() for p in run.decoder.parameters())


def test_before_any_step_the_loss_is_that_of_the_checkpoint(
    settings: FineTuneSettings, base: Path, tmp_path: Path
) -> None:
    run = FineTuning.start(settings, tmp_path / "out")
    assert not run.train(stopped=lambda: True)
    (entry,) = run.trainer.progress.curve
    held_out = Rows(tmp_path / "out/training/held_out", settings.length)
    expected = nats_per_token(loss_of(load_model(base, dtype="float32")), held_out)
    assert entry["held_out_loss"] == pytest.approx(expected, rel=1e-4)


def test_routers_learn_where_asked(settings: FineTuneSettings, tmp_path: Path) -> None:
    run = FineTuning.start(replace(settings, train_router=True, balance=0.01), tmp_path / "out")
    before = weights(run)
    run.train(stopped=lambda: run.trainer.progress.step == 2)
    name = "layers.0.feedforward.router.weight"
    assert not torch.equal(before[name], run.decoder.state_dict()[name])


@pytest.mark.parametrize("change", [{}, {"optimizer": "muon", "recompute": True, "accumulate": 2}])
def test_a_stopped_run_resumes_bit_for_bit(
    change: dict, settings: FineTuneSettings, tmp_path: Path
) -> None:
    settings = replace(settings, steps=8, mxfp4_steps=3, eval_every=4, **change)
    whole = FineTuning.start(settings, tmp_path / "whole")
    whole.train()
    for stop in (0, 6):
        run = FineTuning.start(settings, tmp_path / f"parts{stop}")
        run.train(stopped=lambda r=run, s=stop: r.trainer.progress.step == s)
        torch.manual_seed(99)
        resumed = FineTuning.resume(tmp_path / f"parts{stop}")
        assert resumed.trainer.progress.step == stop
        assert resumed.train()
        expected = weights(whole)
        assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())
        curves = [[point["loss"] for point in r.trainer.progress.curve] for r in (resumed, whole)]
        assert curves[0] == curves[1]


def test_transformers_loads_what_is_saved(settings: FineTuneSettings, tmp_path: Path) -> None:
    run = FineTuning.start(replace(settings, steps=2, experts="dense"), tmp_path / "out")
    run.train()
    run.export()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ours = load_model(tmp_path / "out", dtype=torch.float32)
    tokens = torch.arange(60).view(2, 30)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.reasoning_content }}{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_base_model_is_saved_with_the_end_of_its_template_s_turns(
    settings: FineTuneSettings, base: Path, tmp_path: Path
) -> None:
    """Its own end of text is another."""
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(base, model)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({c: n for n, c in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    inner.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    inner.save(str(model / "tokenizer.json"))
    (model / "tokenizer_config.json").write_text("{}")
    (model / "generation_config.json").write_text('{"eos_token_id": 256, "top_k": 5}')
    (model / "chat_template.jinja").write_text(CHATML)
    run = FineTuning.start(replace(settings, model=str(model), steps=2, warmup=1), out)
    learned = Rows(out / "training/train", settings.length).batch([0]).targets
    run.train()
    run.export()
    assert (learned == 258).any()
    saved = json.loads((out / "generation_config.json").read_text())
    assert saved == {"eos_token_id": [258, 256], "top_k": 5}
    assert text.load_format(out, text.load_tokenizer(out)).stop_ids == {256, 258}


def test_the_trained_model_is_the_checkpoint_unpacked(base: Path) -> None:
    tokens = torch.arange(60).view(2, 30)
    packed = load_model(base, dtype="float32", backend="reference")
    with torch.no_grad():
        torch.testing.assert_close(dense(base).eval()(tokens), packed(tokens), rtol=1e-4, atol=1e-4)


def test_conversations_too_long_are_named_cut_or_left_out(
    settings: FineTuneSettings, tmp_path: Path
) -> None:
    file = chats(tmp_path / "long.jsonl", 10)
    line = {
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "n" * 300}]
    }
    file.write_text(file.read_text() + "\n" + json.dumps(line))
    settings = replace(settings, data=str(file), eval_share=0.0)
    with pytest.raises(
        OssiaError, match=r"long.jsonl, line 11: \d+ tokens, more than --length 400"
    ):
        FineTuning.start(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    sizes = {}
    for choice in ("truncate", "skip"):
        run = FineTuning.start(replace(settings, too_long=choice), tmp_path / choice)
        sizes[choice] = run.data["train"]
    assert sizes["skip"]["conversations"] == 10
    assert sizes["truncate"]["conversations"] == 11
    assert sizes["truncate"]["tokens"] == sizes["skip"]["tokens"] + 400


def test_epochs_make_steps(settings: FineTuneSettings, tmp_path: Path) -> None:
    run = FineTuning.start(replace(settings, steps=0, epochs=2.5), tmp_path / "out")
    assert run.settings.steps == -(-5 * run.data["train"]["rows"] // (2 * settings.batch_size))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ""}, "--model is needed"),
        ({"data": ""}, "--data is needed"),
        ({"model": "./absent"}, "there is no folder ./absent"),
        ({"data": "absent.jsonl"}, "--data absent.jsonl: no such file"),
        ({"eval_data": "absent.jsonl"}, "--eval-data absent.jsonl: no such file"),
        ({"eval_share": 1.0}, "--eval-share must be at least 0 and below 1, not 1"),
        ({"epochs": 0.0}, "--epochs must be above 0"),
        ({"length": 513}, "--length 513: the model's context is 512 tokens"),
        ({"too_long": "cut"}, "--too-long must be error or truncate or skip, not cut"),
        ({"data": "."}, "--data .: is a folder; give a file of JSON lines"),
        ({"date": "today"}, "--date must be a day, YYYY-MM-DD, not today"),
        ({"date": "2026-13-01"}, "--date must be a day, YYYY-MM-DD, not 2026-13-01"),
        ({"rank": 4}, "--rank needs --lora"),
        ({"targets": "attention"}, "--targets needs --lora"),
        ({"balance": 0.01}, "--balance needs --train-router"),
        ({"experts": "dense", "mxfp4_steps": 2}, "--mxfp4-steps needs experts that are saved"),
        ({"mxfp4_steps": 21}, "--mxfp4-steps must lie between 0 and --steps 20"),
        ({"mxfp4_steps": 2000, "steps": 0}, "--mxfp4-steps must lie between 0 and --steps"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    change: dict, message: str, settings: FineTuneSettings, tmp_path: Path
) -> None:
    with pytest.raises(OssiaError) as error:
        FineTuning.start(replace(settings, **change), tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_another_base_is_refused(settings: FineTuneSettings, base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    FineTuning.start(replace(settings, model=str(copy)), tmp_path / "out")
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(OssiaError, match="another checkpoint than the run began with"):
        FineTuning.resume(tmp_path / "out")


def test_a_run_of_another_kind_is_not_resumed(settings: FineTuneSettings, tmp_path: Path) -> None:
    from ossia.train.runs.pretrain import Run

    FineTuning.start(settings, tmp_path / "out")
    with pytest.raises(OssiaError, match="holds a run of ossia finetune; resume it with that"):
        Run.resume(tmp_path / "out")


def test_more_memory_than_there_is_is_refused(
    settings: FineTuneSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "available_memory", lambda: 1_000_000)
    with pytest.raises(OssiaError, match=r"and 1.0 MB are free, at least .* too little: use"):
        FineTuning.start(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(budget, "available_memory", lambda: None)  # a system that does not say
    assert "MB of memory (weights" in FineTuning.start(settings, tmp_path / "out").notes[0]
