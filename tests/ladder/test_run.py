"""A ladder in a folder: what it measures, against independent sums, and that it continues bit for
bit.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ossia.config import ExpertFormat, LearnedPositions, RoPE
from ossia.errors import OssiaError
from ossia.ladder.plan import Plan
from ossia.ladder.reach import bits_by_position, token_bytes, with_yarn
from ossia.ladder.run import Ablation
from ossia.ladder.summary import summarize
from ossia.text.tokenizer import END_OF_TEXT
from ossia.train.corpus import vocabulary
from ossia.train.corpus.documents import Document
from ossia.train.corpus.shards import encode
from ossia.train.evaluate import HeldOut
from tests.models import build, small
from tests.system.test_claims import another_process
from tests.training import TEXT


def files(out: Path) -> dict[str, dict]:
    found = {path.name: json.loads(path.read_text()) for path in (out / "runs").glob("*.json")}
    for result in found.values():
        result.pop("seconds")
        for point in result["curve"]:
            point.pop("seconds")
    return found


def test_a_ladder_stopped_anywhere_ends_with_the_same_numbers(plan: Plan, tmp_path: Path) -> None:
    whole = Ablation.start(plan, tmp_path / "whole")
    assert whole.train()
    assert set(files(tmp_path / "whole")) == {
        "gpt2-0.json",
        "gpt2-1.json",
        "rope-0.json",
        "rope-1.json",
    }
    assert not [path for path in (tmp_path / "whole" / "runs").iterdir() if path.is_dir()]
    Ablation.start(plan, tmp_path / "parts")
    seen: list[tuple[str, int, int]] = []
    for stop in (5, 12, 19, 1000):  # within the first run, at its end, within the second
        seen_before = len(seen)
        torch.manual_seed(99)  # another process has another random state
        finished = Ablation(tmp_path / "parts").train(
            lambda rung, seed, step: seen.append((rung.name, seed, step.step)),
            lambda stop=stop: len(seen) == stop,
        )
        assert finished == (stop == 1000)
        assert len(seen) > seen_before
    # No step was made twice, and all of seed 0 before seed 1.
    runs = [("gpt2", 0), ("rope", 0), ("gpt2", 1), ("rope", 1)]
    assert seen == [(*run, step) for run in runs for step in range(1, 13)]
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_a_ladder_killed_while_it_starts_leaves_its_place_free(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    for name in ("write_json", "texts.write"):
        with monkeypatch.context() as killed:  # nothing is cleared away
            killed.setattr("shutil.rmtree", lambda *_, **__: None)
            killed.setattr(f"ossia.ladder.run.{name}", die)
            with pytest.raises(KeyboardInterrupt):
                Ablation.start(plan, out)
        assert not out.exists()
    assert Ablation.start(plan, out).unfinished


def test_a_ladder_goes_on_only_as_it_was_begun(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    ablation = Ablation.start(replace(plan, steps=1, seeds=1), out)
    ablation.train()
    torch.set_num_threads(2)
    report = summarize(Ablation(out))  # of what one thread trained
    assert report.threads == 1
    assert report.command.endswith(" --threads 1")
    assert Ablation(out).train()  # nothing is left to train
    with pytest.raises(OssiaError, match=r"--threads 2: .*out was begun with --threads 1"):
        Ablation(out, seeds=2).train()
    torch.set_num_threads(1)
    used = report.versions["torch"]
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert summarize(ablation).versions["torch"] == used
    with pytest.raises(OssiaError, match=rf"was begun with torch {re.escape(used)}, and its"):
        Ablation(out, seeds=2).train()


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX systems")
def test_a_ladder_that_another_process_trains_or_that_goes_away_is_left_alone(
    plan: Plan, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ladder = Ablation.start(plan, out)
    with another_process(out / "runs"), pytest.raises(OssiaError, match="another process is at"):
        ladder.train()

    def remove(rung, seed, step) -> None:
        if step.step == 3:
            shutil.rmtree(out)

    with pytest.raises(OssiaError, match="runs was removed or replaced"):
        ladder.train(remove)
    assert not out.exists()


def test_seeds_differ_and_rungs_share_their_batches(plan: Plan, tmp_path: Path) -> None:
    ablation = Ablation.start(plan, tmp_path / "out")
    (_, foot), (_, rope) = ablation.rungs
    assert isinstance(foot.position, LearnedPositions)
    assert isinstance(rope.position, RoPE)

    def batch(config, seed):
        settings = plan.settings(packed=False, seed=seed)
        return ablation.trainer(config, settings, tmp_path / "states")._batches(3).inputs

    assert torch.equal(batch(foot, 0), batch(rope, 0))
    assert not torch.equal(batch(foot, 0), batch(foot, 1))


def test_a_rung_of_packed_experts_is_judged_as_it_would_be_saved(
    plan: Plan, tmp_path: Path
) -> None:
    ablation = Ablation.start(replace(plan, rungs="swiglu,moe,mxfp4", seeds=1), tmp_path / "out")
    ablation.train()
    found = ablation.results()
    dense, mxfp4 = ExpertFormat.DENSE, ExpertFormat.MXFP4
    assert set(found["swiglu"][0].by_format) == {dense}
    for name, kind in (("moe", dense), ("mxfp4", mxfp4)):
        (run,) = found[name]
        assert set(run.by_format) == {dense, mxfp4}
        assert run.bits_per_byte == run.by_format[kind]
        assert run.curve[-1].held_out_bits_per_byte == pytest.approx(run.bits_per_byte, rel=1e-6)
        assert run.by_format[dense] != run.by_format[mxfp4]
    # Only the last quarter rounds the experts.
    curves = [found[name][0].curve for name in ("mxfp4", "moe")]
    alike = [a.loss == b.loss for a, b in zip(*curves, strict=True)]
    assert alike == [point.step <= 9 for point in curves[0]]


def test_bits_by_position_are_those_of_a_plain_sum() -> None:
    learned = vocabulary.learn([TEXT], 300)
    end = vocabulary.control_id(learned, END_OF_TEXT)
    texts = [TEXT[:700], TEXT[900:1000], TEXT[2000:3300]]  # the second is shorter than a window
    held_out = [
        HeldOut(str(i), encode([Document(str(i), text)], learned, end), len(text.encode()))
        for i, text in enumerate(texts)
    ]
    config = replace(small(), vocab_size=300)
    decoder = build(config).eval()
    length, parts = 64, 4
    found = bits_by_position(decoder, held_out, length, token_bytes(learned), parts)
    bits, sizes = [0.0] * parts, [0] * parts
    windows = 0
    for document in held_out:
        ids = document.tokens.tolist()
        for start in range(0, len(ids) - length, length):
            windows += 1
            with torch.no_grad():
                logits = decoder(torch.tensor([ids[start : start + length]]))[0].double()
            for position in range(length):
                target = ids[start + position + 1]
                surprise = logits[position].logsumexp(0) - logits[position, target]
                part = position * parts // length
                bits[part] += surprise.item() / math.log(2)
                sizes[part] += len(learned.decode([target]).encode())
    assert windows > 5
    assert found == pytest.approx([b / s for b, s in zip(bits, sizes, strict=True)], rel=1e-5)


def test_the_bytes_of_a_texts_ids_are_its_bytes() -> None:
    text = "naïve — “π ≈ 3”\n\t家 🙂"
    learned = vocabulary.learn([TEXT, text * 20], 400)
    end = vocabulary.control_id(learned, END_OF_TEXT)
    ids = encode([Document("", text)], learned, end).long()
    assert token_bytes(learned)[ids].sum() == len(text.encode())


def test_yarn_is_read_with_the_training_length_as_its_original_context() -> None:
    config = with_yarn(replace(small(), position=RoPE(theta=1e4)), 16, 4.0)
    assert isinstance(config.position, RoPE)
    yarn = config.position.yarn
    assert yarn is not None
    assert (yarn.factor, yarn.original_context, yarn.truncate) == (4.0, 16, False)
