"""A ladder in a folder: every rung is trained with every seed on one text, and can be stopped and
continued at any step.

The folder holds `ladder.json` (the plan, the text, the threads and versions it began with), the
tokenizer, `train` and `held_out` (token ids), and `runs/`: a file of results for each rung and seed
that is finished, a folder of states for one that is not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from ossia.config import ExpertFormat, ModelConfig, RoPE, expert_formats, with_expert_format
from ossia.errors import OssiaError
from ossia.ladder import rungs
from ossia.ladder.plan import STRETCHES, Plan
from ossia.ladder.reach import bits_by_position, token_bytes, with_yarn
from ossia.ladder.results import Evaluation, LongerTexts, Reading, Run, Text
from ossia.ladder.rungs import REACH, Rung
from ossia.model import Decoder
from ossia.ops.training import for_device
from ossia.system import records
from ossia.system.claims import claim
from ossia.system.files import check_new_folder, creating, write_json, writing
from ossia.train import state
from ossia.train.corpus import shards, sources, texts, vocabulary
from ossia.train.device import CPU, describe
from ossia.train.evaluate import SummedLoss, bits_per_byte, loss_of
from ossia.train.loop import StepReport, Trainer
from ossia.train.rounding import set_rounding
from ossia.train.runs.folder import versions
from ossia.train.runs.presets import with_vocabulary
from ossia.train.settings import Settings

FACTORS = (2, REACH)  # multiples of the training length that a trained model is evaluated at


@dataclass(frozen=True)
class _Beginning:
    """What a ladder began with: the file ladder.json. card: the GPU, if it began on one."""

    plan: Plan
    text: Text
    threads: int
    versions: dict[str, str]
    device: str = CPU.type
    card: str | None = None


class Planned(NamedTuple):
    """A run of a ladder: a rung with a seed."""

    rung: Rung
    config: ModelConfig
    seed: int

    @property
    def title(self) -> str:
        return f"{self.rung.title}, seed {self.seed}"


class Ablation:
    """A ladder in a folder: `start` makes a new one, `Ablation(out)` continues it."""

    def __init__(
        self, out: Path, seeds: int | None = None, device: torch.device | None = None
    ) -> None:
        """Continue the ladder that `start` wrote, with `seeds` from now on if given. device: where
        it trains, which need be known only for that; the CPU if None.

        Raises OssiaError for a folder without a ladder, and for fewer seeds than it has.
        """
        self.out = out
        file = out / "ladder.json"
        beginning = records.read(_Beginning, file)
        self.plan, self.text = beginning.plan, beginning.text
        self.threads, self.versions = beginning.threads, beginning.versions
        self.began_on, self.card = beginning.device, beginning.card
        self.device = device or CPU
        try:
            self._shards, self._held_out = texts.read(out, records.to_json(self.text))
            tokenizer = Tokenizer.from_str((out / "tokenizer.json").read_text(encoding="utf-8"))
        except OssiaError:
            raise
        except Exception as error:  # the tokenizer library raises nothing narrower
            raise OssiaError(f"{file}: not the description of a ladder ({error})") from error
        if seeds is not None and seeds < self.plan.seeds:
            raise OssiaError(
                f"--seeds {seeds}: {out} has {self.plan.seeds}; it may be given more, not fewer"
            )
        if seeds is not None and seeds != self.plan.seeds:
            self.plan = replace(self.plan, seeds=seeds)
            with writing(out):
                write_json(file, records.to_json(replace(beginning, plan=self.plan)))
        self._token_bytes = token_bytes(tokenizer)
        foot = with_vocabulary(self.plan.foot(), tokenizer)
        self.rungs = rungs.climb(foot, rungs.chosen(self.plan.rungs))

    @classmethod
    def start(cls, plan: Plan, out: Path, device: torch.device = CPU) -> Ablation:
        """Read the text, learn the vocabulary and write both into the new folder `out`, which
        appears only once they are complete.

        Raises OssiaError for a folder in use, and for a text that is too short.
        """
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OssiaError(f"--out {out}: exists, and is neither a ladder nor an empty folder")
        check_new_folder(out)
        corpus = sources.read(plan.data)
        tokenizer = vocabulary.learn((d.text for d in corpus.train), plan.vocab_size)
        with writing(out), creating(out) as new:
            (new / "runs").mkdir()
            vocabulary.write(tokenizer, new, plan.foot().context_length)
            text = texts.write(new, corpus, tokenizer, plan.held_out)
            beginning = {
                "plan": asdict(plan),
                "text": text,
                "threads": torch.get_num_threads(),
                "versions": versions(),
                **describe(device),
            }
            write_json(new / "ladder.json", beginning)
            cls(new)._refuse_too_little()
        return cls(out, device=device)

    @property
    def runs(self) -> list[Planned]:
        """All runs in order: every rung with seed 0, then with seed 1 and so on."""
        return [
            Planned(rung, config, seed)
            for seed in range(self.plan.seeds)
            for rung, config in self.rungs
        ]

    @property
    def unfinished(self) -> list[Planned]:
        """The `runs` without results."""
        return [run for run in self.runs if not self._file(run.rung, run.seed).is_file()]

    def run(self, name: str, seed: int) -> Planned:
        """The run of the rung of this name with this seed."""
        return next(run for run in self.runs if (run.rung.name, run.seed) == (name, seed))

    def steps_made(self, run: Planned) -> int:
        """The steps of an unfinished run up to its newest state."""
        return state.newest_step(self._file(run.rung, run.seed).with_suffix(""))

    def train(
        self,
        report: Callable[[Rung, int, StepReport], None] = lambda *_: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train all unfinished runs. True when none is left; False when `stopped()` returned True,
        with the state of the current run saved.

        Raises OssiaError if this process would compute them otherwise than the finished ones, and
        if another process trains them.
        """
        if not self.unfinished:
            return True
        self.refuse_other_sums()
        runs = self.out / "runs"
        claimed = claim(runs)

        def checked() -> bool:
            claimed.check(runs)
            return stopped()

        for run in self.unfinished:

            def heard(step: StepReport, run: Planned = run) -> None:
                report(run.rung, run.seed, step)

            if not self.train_one(run, heard, checked):
                return False
        return True

    def train_one(
        self,
        run: Planned,
        report: Callable[[StepReport], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train one of the unfinished `runs` and write its results. False when `stopped()` returned
        True, with its state saved.

        Raises OssiaError if the run fails, and if another process trains it.
        """
        file = self._file(run.rung, run.seed)
        states = file.with_suffix("")
        found = self._trained(run, states, report, stopped)
        if found is None:
            return False
        with writing(self.out):
            write_json(file, records.to_json(found))
            shutil.rmtree(states)
        return True

    def _trained(
        self,
        run: Planned,
        states: Path,
        report: Callable[[StepReport], None],
        stopped: Callable[[], bool],
    ) -> Run | None:
        """The results of a run, whose states are kept meanwhile; None if it was stopped."""
        try:
            states.mkdir(exist_ok=True)
        except OSError as error:
            raise OssiaError(f"cannot write to {states}: {error.strerror}") from error
        claimed = claim(states)

        def checked() -> bool:
            if stopped():
                return True
            claimed.check(states)
            return False

        settings = self.plan.settings(packed=is_packed(run.config), seed=run.seed)
        trainer = self.trainer(run.config, settings, states)
        trainer.resume()
        if self.plan.compile and (problem := trainer.compile()) is not None:
            raise OssiaError(f"--compile: {run.rung.title} cannot be compiled ({problem})")
        if not trainer.run(report, checked):
            return None
        found = self._evaluate(trainer, run.config)
        claimed.check(states)
        return found

    def trainer(self, config: ModelConfig, settings: Settings, states: Path) -> Trainer:
        """One run at its first step."""
        # Dense weights are trained; MXFP4 is quantized from them.
        decoder = Decoder(with_expert_format(config, ExpertFormat.DENSE), for_device(self.device))
        decoder.init_weights(torch.Generator().manual_seed(settings.seed))
        decoder.to(self.device)

        def evaluate(loss: SummedLoss) -> dict[str, float]:
            # With the experts as the last step saw them.
            if trainer.progress.step > settings.steps - settings.mxfp4_steps:
                loss = loss_of(_copy(decoder, rounded=True))
            bits = bits_per_byte(loss, self._held_out, settings.length)
            return {"held_out_bits_per_byte": bits[""]}

        trainer = Trainer(decoder, self.batches(settings), evaluate, settings, states)
        return trainer

    def batches(self, settings: Settings) -> shards.TextBatches:
        """The batches of a run."""
        return shards.TextBatches(self._shards, settings, self.text.separator)

    def results(self) -> dict[str, list[Run]]:
        """The runs of each rung, by its name, with every seed; all must be finished."""
        return {
            rung.name: [records.read(Run, self._file(rung, i)) for i in range(self.plan.seeds)]
            for rung, _ in self.rungs
        }

    def _file(self, rung: Rung, seed: int) -> Path:
        return self.out / "runs" / f"{rung.name}-{seed}.json"

    def _evaluate(self, trainer: Trainer, config: ModelConfig) -> Run:
        """A finished run at the length that it was trained on and beyond."""
        trained, packed = trainer.decoder, is_packed(config)
        bits = {ExpertFormat.DENSE: self._bits(_copy(trained), 1)}
        if expert_formats(config):
            bits[ExpertFormat.MXFP4] = self._bits(_copy(trained, rounded=True), 1)
        longer = {Reading.AS_TRAINED: self._longer(trained, packed, yarn=False)}
        if isinstance(config.position, RoPE):
            longer[Reading.YARN] = self._longer(trained, packed, yarn=True)
        return Run(
            tokens=trainer.progress.tokens,
            seconds=round(trainer.progress.seconds, 1),
            curve=tuple(records.from_json(Evaluation, one) for one in trainer.progress.curve),
            bits_per_byte=bits[ExpertFormat.MXFP4 if packed else ExpertFormat.DENSE],
            by_format=bits,
            longer=longer,
        )

    def _longer(self, trained: Decoder, packed: bool, *, yarn: bool) -> LongerTexts:
        decoders = {}
        for factor in FACTORS:
            config = trained.config
            if yarn:
                config = with_yarn(config, self.plan.length, factor)
            decoders[factor] = _copy(trained, config, rounded=packed)
        return LongerTexts(
            {factor: self._bits(decoder, factor) for factor, decoder in decoders.items()},
            tuple(self._bits_by_position(decoders[REACH])),
        )

    def _bits(self, decoder: Decoder, factor: int) -> float:
        """Bits per byte in windows of `factor` times the training length."""
        return bits_per_byte(loss_of(decoder), self._held_out, factor * self.plan.length)[""]

    def _bits_by_position(self, decoder: Decoder) -> list[float]:
        length = REACH * self.plan.length
        return bits_by_position(decoder, self._held_out, length, self._token_bytes, STRETCHES)

    def refuse_other_sums(self) -> None:
        """Raise OssiaError for another device or number of threads, which add in another order, and
        for other versions.
        """
        threads, now = torch.get_num_threads(), versions()
        here, begun = describe(self.device), {"device": self.began_on, "card": self.card}
        if here != {key: value for key, value in begun.items() if value is not None}:
            raise OssiaError(
                f"{self.out} was begun on {self.card or self.began_on}, and its losses would "
                f"differ on {here.get('card', here['device'])}; use that, or start a new ladder"
            )
        if self.device.type == "cpu" and threads != self.threads:
            raise OssiaError(
                f"--threads {threads}: {self.out} was begun with --threads {self.threads}, and its "
                "losses would differ with another number; use that, or start a new ladder"
            )
        others = [f"{name} {v}" for name, v in self.versions.items() if now.get(name) != v]
        if others:
            raise OssiaError(
                f"{self.out} was begun with {', '.join(others)}, and its losses may differ with "
                "another version; use those, or start a new ladder"
            )

    def _refuse_too_little(self) -> None:
        """Raise OssiaError, before the first run, for a text too short to train on or to evaluate
        at the longest length.
        """
        plan = self.plan
        shards.Batches(self._shards, plan.batch_size, plan.length, seed=0)
        if all(len(document.tokens) <= REACH * plan.length for document in self._held_out):
            raise OssiaError(
                f"--data {plan.data}: no held-out text has more than the {REACH * plan.length} "
                "tokens that each rung reads at once; use a shorter --length"
            )


def _copy(trained: Decoder, config: ModelConfig | None = None, *, rounded: bool = False) -> Decoder:
    """The weights under another config of the same shapes, with the experts `rounded` to MXFP4 if
    asked for.
    """
    ops = for_device(trained.device)
    decoder = Decoder.assembled(config or trained.config, trained.state_dict(), ops)
    set_rounding(decoder, rounded)
    return decoder.eval().requires_grad_(False)


def is_packed(config: ModelConfig) -> bool:
    """Whether the experts are MXFP4."""
    return ExpertFormat.MXFP4 in expert_formats(config)
