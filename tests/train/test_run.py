"""Runs: they learn, resume bit for bit, export what was trained, and refuse what cannot work."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from ossia import checkpoint, load_model, text
from ossia.errors import OssiaError
from ossia.ops import mxfp4
from ossia.ops.rounded import round_trip
from ossia.train.corpus import sources, texts, vocabulary
from ossia.train.evaluate import bits_per_byte, loss_of
from ossia.train.loop import Trainer
from ossia.train.runs import folder
from ossia.train.runs.folder import command
from ossia.train.runs.pretrain import Run
from ossia.train.settings import (
    FineTuneSettings,
    Precision,
    Schedule,
    Settings,
    Training,
    learning_rate,
)


def weights(run: Run) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.decoder.state_dict().items()}


def identical(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def die(*_: object) -> None:
    raise KeyboardInterrupt


def losses(run: Run) -> list[float]:
    return [point["loss"] for point in run.trainer.progress.curve]


def test_a_tiny_model_learns_a_tiny_text(tiny: Settings, tmp_path: Path) -> None:
    seen: list[float] = []
    run = Run.start(replace(tiny, steps=60), tmp_path / "out")
    assert run.train(lambda step: seen.append(step.loss))
    assert seen[0] > 5  # near log(300): nothing is known yet
    assert sum(seen[-10:]) / 10 < 2.5
    curve = [point["held_out_bits_per_byte"] for point in run.trainer.progress.curve]
    assert curve[-1] < 0.5 * curve[0]


def test_bfloat16_matrix_products_learn_too(tiny: Settings, tmp_path: Path) -> None:
    run = Run.start(replace(tiny, dtype="bfloat16"), tmp_path / "out")
    run.train()
    assert losses(run)[-1] < losses(run)[0] - 0.5
    assert all(p.dtype == torch.float32 for p in run.decoder.parameters())


def test_a_stopped_run_resumes_bit_for_bit(tiny: Settings, tmp_path: Path) -> None:
    settings = replace(tiny, long_length=64, long_steps=8, mxfp4_steps=12)
    whole = Run.start(settings, tmp_path / "whole")
    assert whole.train()
    for stop in (7, 21, 25):  # before all changes, among rounded experts, among long sequences
        run = Run.start(settings, tmp_path / f"parts{stop}")
        assert not run.train(stopped=lambda r=run, s=stop: r.trainer.progress.step == s)
        torch.manual_seed(99)  # another process has another random state
        resumed = Run.resume(tmp_path / f"parts{stop}")
        assert resumed.trainer.progress.step == stop
        assert resumed.train()
        assert identical(weights(resumed), weights(whole))
        assert losses(resumed) == losses(whole)


def test_timing_a_pass_changes_nothing(tiny: Settings, tmp_path: Path) -> None:
    whole, timed = (Run.start(tiny, tmp_path / name) for name in ("whole", "timed"))
    assert timed.trainer.time_pass(20)[1] == 20
    assert timed.trainer.time_pass(70)[1] == 64  # whole rows
    assert timed.trainer.time_pass(10**6)[1] == 4 * 32  # a batch
    assert all(p.grad is None for p in timed.decoder.parameters())
    assert whole.train()
    assert timed.train()
    assert identical(weights(timed), weights(whole))


def test_a_run_goes_on_with_its_threads_unless_others_are_asked_for(
    tiny: Settings, tmp_path: Path
) -> None:
    run = Run.start(tiny, tmp_path / "out")
    run.use_threads(2)
    run.train(stopped=lambda: run.trainer.progress.step == 3)
    for asked, used in ((None, 2), (3, 3)):
        torch.set_num_threads(4)
        Run.resume(tmp_path / "out").use_threads(asked)
        assert torch.get_num_threads() == used


@pytest.mark.parametrize("chosen", ["float32", "bfloat16"])
def test_the_precision_that_is_measured_to_be_faster_is_kept(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    monkeypatch.setattr(
        Trainer, "time_pass", lambda _, most, precision: (1 if precision == chosen else 2, most)
    )
    asked = Run.start(replace(tiny, dtype=chosen), tmp_path / "asked")
    assert asked.train()
    run = Run.start(replace(tiny, dtype="auto"), tmp_path / "out")
    assert not run.train(stopped=lambda: run.trainer.progress.step == 3)
    assert run.settings.dtype == chosen
    assert any(note.startswith(f"precision: {chosen}, the faster (") for note in run.notes)
    monkeypatch.undo()
    resumed = Run.resume(tmp_path / "out", {"dtype": Precision.AUTO})
    assert resumed.settings.dtype == chosen
    assert resumed.train()
    assert identical(weights(resumed), weights(asked))
    assert resumed.circumstances()["command"].count("--dtype") == (chosen != "float32")


PROGRAM = """
import json, sys, torch
from pathlib import Path
from ossia.train.runs.pretrain import Run
from ossia.train.settings import Settings
torch.set_num_threads(1)
out = Path(sys.argv[2])
run = Run.resume(out) if out.exists() else Run.start(Settings(**json.loads(sys.argv[1])), out)
def report(step):
    print(step.step, step.loss.hex(), flush=True)
    sys.stdin.readline()  # leave to go on
run.train(report)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_a_run_killed_at_any_moment_continues_bit_for_bit(tiny: Settings, tmp_path: Path) -> None:
    """Killed again and again, between steps and while it saves (it saves at every other one)."""
    settings = replace(tiny, steps=60, save_every=2, eval_every=60)
    expected: list[str] = []
    whole = Run.start(settings, tmp_path / "whole")
    whole.train(lambda step: expected.append(f"{step.step} {step.loss.hex()}"))
    out, seen = tmp_path / "killed", set()
    moments = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(asdict(settings)), str(out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        count = moments.randint(5, 15)
        process.stdin.write("\n" * (count + 3))  # it gets no further while this process waits
        process.stdin.flush()
        for _ in range(count):
            seen.add(process.stdout.readline().strip())
        time.sleep(moments.random() * 0.05)
        os.kill(process.pid, signal.SIGKILL)
        seen |= {line.strip() for line in process.stdout if line.endswith("\n")}
        assert process.wait() == -signal.SIGKILL
        process.stdin.close()
        process.stdout.close()
    resumed = Run.resume(out)
    assert 0 < resumed.trainer.progress.step < 60
    resumed.train(lambda step: seen.add(f"{step.step} {step.loss.hex()}"))
    assert seen <= set(expected)
    # A process that is killed between a save and its report tells nobody of that step.
    untold = [int(line.split()[0]) for line in set(expected) - seen]
    assert len(untold) <= 3
    assert all(step % settings.save_every == 0 for step in untold)
    assert identical(weights(resumed), weights(whole))


def test_the_record_says_with_how_many_threads_each_step_was_made(
    tiny: Settings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    Run.start(replace(tiny, steps=4, warmup=0, save_every=1), out)
    for threads, stop in ((1, 1), (2, 2), (1, 3), (2, 4)):
        torch.set_num_threads(threads)
        run = Run.resume(out)
        run.train(stopped=lambda r=run, s=stop: r.trainer.progress.step == s)
        if stop == 3:  # is lost, and made again by two threads
            shutil.rmtree(out / "training/states/step-00000003")
    torch.set_num_threads(1)
    record = Run.resume(out).export()
    assert record["threads"] == 1
    sessions = [(session["from_step"], session["threads"]) for session in record["sessions"]]
    assert sessions == [(0, 1), (1, 2)]
    assert all(session["versions"] == record["versions"] for session in record["sessions"])


def test_a_damaged_state_gives_way_to_the_one_before(tiny: Settings, tmp_path: Path) -> None:
    whole = Run.start(tiny, tmp_path / "whole")
    whole.train()
    run = Run.start(tiny, tmp_path / "out")
    run.train(stopped=lambda: run.trainer.progress.step == 24)
    states = sorted((tmp_path / "out/training/states").iterdir())
    assert [state.name for state in states] == ["step-00000020", "step-00000024"]  # older ones go
    for damage in (b"cut", b"flipped"):
        (file,) = states[1].glob("*.distcp")
        content = bytearray(file.read_bytes())
        if damage == b"cut":
            content = content[:-100]
        else:
            content[len(content) // 2] ^= 1
        file.write_bytes(content)
        resumed = Run.resume(tmp_path / "out")
        assert resumed.trainer.progress.step == 20
        resumed.train(stopped=lambda r=resumed: r.trainer.progress.step == 24)  # saves it anew
        assert Run.resume(tmp_path / "out").trainer.progress.step == 24
    resumed = Run.resume(tmp_path / "out")
    resumed.train()
    assert identical(weights(resumed), weights(whole))
    for state in (tmp_path / "out/training/states").iterdir():
        (state / "manifest.json").unlink()
    with pytest.raises(OssiaError, match="none of the 2 saved states is whole"):
        Run.resume(tmp_path / "out")


@pytest.mark.parametrize("change", [{"optimizer": "muon"}, {"schedule": "wsd", "recompute": True}])
def test_every_optimizer_learns_and_resumes(change: dict, tiny: Settings, tmp_path: Path) -> None:
    settings = replace(tiny, **change)
    whole = Run.start(settings, tmp_path / "whole")
    whole.train()
    assert losses(whole)[-1] < losses(whole)[0] - 0.5
    run = Run.start(settings, tmp_path / "parts")
    run.train(stopped=lambda: run.trainer.progress.step == 13)
    resumed = Run.resume(tmp_path / "parts")
    resumed.train()
    assert identical(weights(resumed), weights(whole))


def test_recomputing_layers_changes_nothing(tiny: Settings, tmp_path: Path) -> None:
    runs = [Run.start(replace(tiny, recompute=x), tmp_path / str(x)) for x in (False, True)]
    for run in runs:
        run.train(stopped=lambda r=run: r.trainer.progress.step == 5)
    assert identical(weights(runs[0]), weights(runs[1]))


def test_a_batch_in_parts_is_the_batch(tiny: Settings, tmp_path: Path) -> None:
    settings = replace(tiny, config="small-qwen3")  # experts would balance over a part each
    reports: dict[int, list] = {1: [], 4: []}
    for parts, seen in reports.items():
        run = Run.start(replace(settings, accumulate=parts), tmp_path / str(parts))
        run.train(seen.append, lambda seen=seen: len(seen) == 3)
    for one, other in zip(reports[1], reports[4], strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-4)


def test_a_run_that_never_saved_resumes_from_its_first_step(tiny: Settings, tmp_path: Path) -> None:
    first = weights(Run.start(tiny, tmp_path / "out"))
    assert identical(weights(Run.resume(tmp_path / "out")), first)


def test_the_vocabulary_is_learned_from_the_training_text_and_further_text_if_asked(
    tiny: Settings, tmp_path: Path
) -> None:
    more = tmp_path / "more.txt"
    more.write_text("xylophone quartet\n" * 300)
    trained = sources.read(tiny.data).train
    for further, added in (("", []), (str(more), [more.read_text()])):
        out = tmp_path / f"out{len(added)}"
        run = Run.start(replace(tiny, vocabulary_data=further), out)
        learned = vocabulary.learn([*(d.text for d in trained), *added], tiny.vocab_size)
        assert json.loads((out / "tokenizer.json").read_text()) == json.loads(learned.to_str())
        assert run.text["train"]["bytes"] == sum(d.num_bytes for d in trained)
        tokens = text.load_tokenizer(out).encode(" quartet")
        assert (len(tokens) == 1) == bool(added)


def test_the_export_is_the_trained_model_and_the_record_says_what_it_is(
    tiny: Settings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = Run.start(replace(tiny, mxfp4_steps=10), out)
    run.train()
    record = run.export()
    assert record == json.loads((out / "record.json").read_text())
    saved = checkpoint.load(out)
    bits = record["held_out_bits_per_byte"]
    assert bits_per_byte(loss_of(saved), run.held_out, tiny.length)[""] == pytest.approx(
        bits["as_saved"]
    )
    assert bits["as_saved"] == pytest.approx(bits["as_trained"], rel=0.05)
    assert record["parameters"]["total"] == sum(p.numel() for p in run.decoder.parameters())
    assert record["tokens"] == 30 * 4 * 32
    assert not (out / "training").exists()
    tokenizer = text.load_tokenizer(out)
    assert tokenizer.vocab_size == saved.config.vocab_size
    # It has learned no chats, which would end otherwise.
    ends = text.end_of_text_ids(text.read_generation_config(out))
    assert ends == {tokenizer.control["<|endoftext|>"]} == set(saved.config.eos_ids)
    assert text.read_generation_config(out).keys() <= {
        f"{x}_token_id" for x in ("bos", "eos", "pad")
    }
    name = "layers.0.feedforward.down"
    blocks, scales = saved.get_buffer(f"{name}.blocks"), saved.get_buffer(f"{name}.scales")
    values = mxfp4.unpack(mxfp4.MXFP4(blocks, scales), torch.float32)
    seen = round_trip(run.decoder.get_parameter(f"{name}.weight"))
    torch.testing.assert_close(seen, values, rtol=1e-6, atol=1e-7)
    with pytest.raises(OssiaError, match="finished"):
        Run.resume(out)


def test_transformers_loads_an_export(tiny: Settings, tmp_path: Path) -> None:
    run = Run.start(replace(tiny, steps=3, warmup=0, experts="dense"), tmp_path / "out")
    run.train()
    run.export()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ours = load_model(tmp_path / "out", dtype=torch.float32)
    tokens = torch.arange(60).view(2, 30)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", ["small-gpt2", "small-qwen3", "small-gpt-oss"])
def test_each_preset_trains_and_exports(config: str, tiny: Settings, tmp_path: Path) -> None:
    settings = replace(tiny, config=config, steps=1, warmup=0, batch_size=1)
    run = Run.start(settings, tmp_path / "out")
    run.train()
    assert run.export()["steps"] == 1


def test_the_config_of_a_checkpoint_with_packed_experts_trains(
    tiny: Settings, tmp_path: Path
) -> None:
    settings = replace(tiny, steps=1, warmup=0)
    run = Run.start(settings, tmp_path / "out")
    run.train()
    run.export()
    config = tmp_path / "out" / "config.json"
    assert "mxfp4" in config.read_text()
    run = Run.start(replace(settings, config=str(config)), tmp_path / "again")
    run.train()
    assert run.export()["steps"] == 1


def test_unknown_keys_of_a_config_are_ignored_if_asked(tiny: Settings, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    known = {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 64}
    config.write_text(json.dumps(known | {"vocab_size": 50257, "my_note": 7}))
    settings = replace(tiny, config=str(config), steps=1, warmup=0)
    with pytest.raises(OssiaError, match="my_note"):
        Run.start(settings, tmp_path / "out")
    run = Run.start(replace(settings, ignore_unknown_keys=True), tmp_path / "out")
    run.train()
    assert run.export()["steps"] == 1


@pytest.mark.parametrize(
    ("kind", "steps"),
    [(float("nan"), 30), (1000.0, 30), (float("nan"), 13)],  # 13: no step comes after
)
def test_weights_gone_wrong_are_no_good_state(
    kind: float, steps: int, tiny: Settings, tmp_path: Path
) -> None:
    """The update of step 13 is as bad as a too high learning rate makes it, and is saved."""
    out = tmp_path / "out"
    run = Run.start(replace(tiny, steps=steps, save_every=1), out)
    run.train(stopped=lambda: run.trainer.progress.step == 12)
    good = weights(run)
    assert run.trainer.step().step == 13
    with torch.no_grad():
        run.decoder.norm.weight.mul_(kind)
    run.trainer.save()
    assert (out / "training/states/step-00000013").exists()
    resumed = Run.resume(out)
    assert resumed.trainer.progress.step == 13
    with pytest.raises(
        OssiaError, match=r"loss (is nan|exploded to .*) after 13 steps.*states/step-00000012\."
    ):
        resumed.train()
    assert not (out / "record.json").exists()
    assert identical(weights(Run.resume(out)), good)


def test_a_learning_rate_too_high_leaves_no_state_to_call_good(
    tiny: Settings, tmp_path: Path
) -> None:
    settings = replace(tiny, learning_rate=1e3, warmup=0, save_every=1)
    for steps in (30, 1):  # found by the step after, and where none comes
        out = tmp_path / str(steps)
        run = Run.start(replace(settings, steps=steps), out)
        with pytest.raises(OssiaError, match="after 1 steps; no good state was saved"):
            run.train()
        assert not list((out / "training/states").iterdir())


def test_a_gradient_that_is_not_a_number_speaks_not_against_the_weights(
    tiny: Settings, tmp_path: Path
) -> None:
    run = Run.start(tiny, tmp_path / "out")
    run.train(stopped=lambda: run.trainer.progress.step == 12)
    weight = run.decoder.norm.weight
    weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(OssiaError, match=r"gradient is nan after 12 .*states/step-00000012\."):
        run.train()


def test_a_loss_that_explodes_stops_before_it_reaches_the_weights(
    tiny: Settings, tmp_path: Path
) -> None:
    run = Run.start(tiny, tmp_path / "out")
    with torch.no_grad():
        run.decoder.norm.weight.mul_(1000)
    before = weights(run)
    with pytest.raises(OssiaError, match=r"loss exploded to .* after 0 steps; no good state"):
        run.train()
    assert identical(weights(run), before)


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    settings = Settings(steps=110, warmup=10, learning_rate=1.0)
    rates = [learning_rate(settings, step) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0, abs=1e-12)


def test_wsd_stays_and_then_falls_in_a_line() -> None:
    settings = Settings(steps=100, warmup=10, learning_rate=1.0, schedule=Schedule.WSD, decay=20)
    rates = [learning_rate(settings, step) for step in range(101)]
    assert rates[4] == pytest.approx(0.5)
    assert set(rates[9:81]) == {1.0}
    assert rates[90] == pytest.approx(0.5)
    assert rates[100] == 0


@pytest.mark.parametrize("fall", [{}, {"schedule": "wsd", "decay": 20}])
def test_the_learning_rate_falls_to_the_final_one(fall: dict) -> None:
    settings = Settings(steps=100, warmup=10, learning_rate=2.0, final_learning_rate=0.5, **fall)
    rates = [learning_rate(settings, step) for step in range(101)]
    assert max(rates) == rates[10] == 2.0
    assert rates[90 if fall else 55] == pytest.approx(1.25)  # half of the way
    assert rates[100] == 0.5


@pytest.mark.parametrize(
    ("settings", "rise"),
    [
        (Settings(), 100),
        (Settings(steps=1400, schedule=Schedule.WSD, decay=100), 100),
        (Settings(steps=1400, schedule=Schedule.WSD, decay=1400), 0),
        (Settings(steps=30), 3),
        (Settings(steps=1), 0),
        (FineTuneSettings(model="m", data="d", steps=3000), 10),
        (FineTuneSettings(model="m", data="d", steps=20), 2),
        (FineTuneSettings(model="m", data="d", steps=2), 0),
    ],
)
def test_a_warmup_not_given_suits_the_steps(settings: Training, rise: int) -> None:
    rates = [learning_rate(settings, step) for step in range(settings.steps)]
    assert rates.index(settings.learning_rate) == max(0, rise - 1)
    assert rates[-1] < settings.learning_rate or settings.steps == 1
    assert replace(settings, warmup=rise) == settings.settled()


@pytest.mark.parametrize(
    ("warmup", "decay"), [(None, 0), (None, 100), (None, 95), (90, 0), (100, 0), (40, 60)]
)
def test_wsd_never_jumps(warmup: int | None, decay: int) -> None:
    settings = Settings(
        steps=100, learning_rate=1.0, warmup=warmup, schedule=Schedule.WSD, decay=decay
    )
    rates = [learning_rate(settings, step) for step in range(101)]
    changes = [after - before for before, after in pairwise(rates)]
    rises, falls = [c for c in changes if c > 0], [c for c in changes if c < 0]
    assert max(rises, default=0) == pytest.approx(min(rises, default=0))
    assert max(falls) == pytest.approx(min(falls))


def test_the_record_repeats_the_command() -> None:
    settings = Settings(steps=5, learning_rate=1e-3, recompute=True)
    assert command("train", settings, Path("a/my model")) == (
        "ossia train --steps 5 --learning-rate 0.001 --recompute --out 'my model'"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1"),
        ({"learning_rate": -1.0}, "--learning-rate must be above 0"),
        (
            {"final_learning_rate": 1.0},
            "must be at most --learning-rate 0.01, not 1",
        ),
        ({"long_steps": 5}, "--long-length and --long-steps go together"),
        ({"long_length": 48, "long_steps": 5}, "--long-length 48 does not divide"),
        ({"mxfp4_steps": 31}, "--mxfp4-steps must lie between 0 and --steps 30"),
        ({"warmup": 31}, "--warmup must lie between 0 and --steps 30"),
        (
            {"schedule": "wsd", "warmup": 20, "decay": 11},
            "--warmup 20 and --decay 11 are more than --steps 30",
        ),
        ({"accumulate": 3}, "--accumulate 3 does not divide a batch of 4 sequences"),
        ({"decay": 3}, "--decay needs --schedule wsd"),
        ({"schedule": "line"}, "--schedule must be cosine or wsd, not line"),
        ({"config": "small-gpt2", "expert_parallel": True}, "--expert-parallel needs a model"),
        ({"dtype": "int8"}, "--dtype must be float32 or bfloat16 or auto, not int8"),
        ({"experts": "int4"}, "--experts must be dense or mxfp4, not int4"),
        ({"config": "huge"}, "--config huge: neither a config.json nor one of small-gpt-oss"),
        ({"length": 256, "batch_size": 1}, "context is 128 tokens, too short for 256"),
        ({"config": "small-gpt2", "mxfp4_steps": 1}, "--mxfp4-steps needs a model with experts"),
        ({"vocab_size": 10}, "--vocab-size 10"),
        ({"vocabulary_data": "absent"}, "--vocabulary-data absent: no such file or folder"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    change: dict, message: str, tiny: Settings, tmp_path: Path
) -> None:
    with pytest.raises(OssiaError) as error:
        Run.start(replace(tiny, **change), tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("moment", [texts, folder])
@pytest.mark.parametrize("existed", [False, True])
def test_a_run_killed_while_it_starts_leaves_its_place_free(
    existed: bool,
    moment: ModuleType,
    tiny: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the token ids, or at the description, which is last."""
    out = tmp_path / "out"
    if existed:
        out.mkdir()
    with monkeypatch.context() as killed:  # nothing is cleared away
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)
        killed.setattr(moment, "write" if moment is texts else "write_json", die)
        with pytest.raises(KeyboardInterrupt):
            Run.start(tiny, out)
    assert out.exists() == existed
    with pytest.raises(OssiaError, match="holds no run to resume"):
        Run.resume(out)
    Run.start(tiny, out)
    assert Run.resume(out).trainer.progress.step == 0


def test_folders_in_use_are_refused(tiny: Settings, tmp_path: Path) -> None:
    Run.start(tiny, tmp_path / "out")
    with pytest.raises(OssiaError, match="unfinished run"):
        Run.start(tiny, tmp_path / "out")
    with pytest.raises(OssiaError, match="not an empty folder"):
        Run.start(tiny, tmp_path)
    with pytest.raises(OssiaError, match="no run to resume"):
        Run.resume(tmp_path)
