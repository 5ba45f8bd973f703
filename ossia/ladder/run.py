"""The ladder trained in a folder: every rung with every seed on one text, stopped and continued at
will.

The folder holds `rungs.json` (the plan, the text, the threads and versions it began with), the
tokenizer, `train` and `held_out` (token ids), and `runs/`: a file of results for each rung and seed
that is finished, a folder of states for one that is not.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from ossia.adapt.quantized import expert_names, round_trip
from ossia.config import ExpertFormat, ModelConfig, MoEConfig, RoPE, with_expert_format
from ossia.errors import OssiaError
from ossia.ladder import rungs
from ossia.ladder.measure import kept_bytes
from ossia.ladder.reach import bits_by_position, token_bytes, with_yarn
from ossia.ladder.rungs import REACH, Rung
from ossia.ladder.statistics import MOST_SEEDS
from ossia.model import Decoder
from ossia.ops.training import TRAINING
from ossia.system.files import read_json, replacing, write_json
from ossia.train.corpus import shards, sources, texts, vocabulary
from ossia.train.evaluate import SummedLoss, bits_per_byte, loss_of
from ossia.train.loop import StepReport, Trainer
from ossia.train.objective import Objective
from ossia.train.runs.folder import check_replaceable, versions, writing
from ossia.train.runs.presets import with_vocabulary
from ossia.train.settings import Settings, option

STRETCHES = 4 * REACH  # of positions whose bits per byte are told apart
FACTORS = (2, REACH)  # of the training length, that a trained model is asked to read

_MOST_HELD_OUT_BYTES = 64 << 10  # evaluated some fifteen times a run
_EVALUATIONS = 8  # while it trains


@dataclass(frozen=True)
class Plan:
    """What every run of a ladder has in common."""

    data: str = "stdlib"
    rungs: str = "all"
    layers: int = 4
    hidden: int = 96
    vocab_size: int = 1024
    length: int = 256  # tokens
    batch_size: int = 4  # sequences
    steps: int = 250
    learning_rate: float = 3e-3
    seeds: int = 3  # 0, 1, ...; more may be added to a ladder that is there

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise OssiaError(f"--seeds must lie between 1 and {MOST_SEEDS}, not {self.seeds}")
        if REACH * self.length % STRETCHES:
            multiple = STRETCHES // REACH
            raise OssiaError(f"--length must be a multiple of {multiple}, not {self.length}")
        rungs.chosen(self.rungs)
        self.foot()
        self.settings(packed=True, seed=0)

    def foot(self) -> ModelConfig:
        """GPT-2 at this size. Raises OssiaError for one that the ladder cannot have."""
        return rungs.gpt2(
            layers=self.layers,
            hidden=self.hidden,
            length=self.length,
            vocab_size=self.vocab_size,
        )

    def settings(self, *, packed: bool, seed: int) -> Settings:
        """Those of one run; `packed` experts are seen rounded in its last quarter.

        Raises OssiaError for values that cannot work.
        """
        often = math.ceil(self.steps / _EVALUATIONS)
        return Settings(
            data=self.data,
            vocab_size=self.vocab_size,
            steps=self.steps,
            batch_size=self.batch_size,
            length=self.length,
            learning_rate=self.learning_rate,
            warmup=math.ceil(self.steps / 10),
            mxfp4_steps=math.ceil(self.steps / 4) if packed else 0,
            seed=seed,
            eval_every=often,
            save_every=often,
        )


class Ablation:
    """A ladder in a folder: `start` makes one, `Ablation(out)` continues it."""

    def __init__(self, out: Path, seeds: int | None = None) -> None:
        """Take up what `start` wrote; other `seeds` than it was last asked for are written down."""
        self.out = out
        file = out / "ladder.json"
        described = read_json(file)
        try:
            self.plan = Plan(**described["plan"])
            self.text: dict[str, Any] = described["text"]
            self.threads: int = described["threads"]
            self.versions: dict[str, str] = described["versions"]
            self._shards, self._held_out = texts.read(out, self.text)
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
                write_json(file, {**described, "plan": asdict(self.plan)})
        self._token_bytes = token_bytes(tokenizer)
        foot = with_vocabulary(self.plan.foot(), tokenizer)
        self.rungs = rungs.climb(foot, rungs.chosen(self.plan.rungs))

    @classmethod
    def start(cls, plan: Plan, out: Path) -> Ablation:
        """Read the text, learn the vocabulary and write both into the new folder `out`, which
        appears when they are whole.

        Raises OssiaError for a folder in use, and for a text that cannot work.
        """
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OssiaError(f"--out {out}: exists, and is neither a ladder nor an empty folder")
        check_replaceable(out)
        corpus = sources.read(plan.data)
        tokenizer = vocabulary.learn((d.text for d in corpus.train), plan.vocab_size)
        with writing(out), replacing(out) as new:
            (new / "runs").mkdir()
            vocabulary.write(tokenizer, new, plan.foot().context_length)
            text = texts.write(new, corpus, tokenizer, _MOST_HELD_OUT_BYTES)
            described = {
                "plan": asdict(plan),
                "text": text,
                "threads": torch.get_num_threads(),
                "versions": versions(),
            }
            write_json(new / "ladder.json", described)
            cls(new)._refuse_too_little()
        return cls(out)

    @property
    def runs(self) -> list[tuple[Rung, ModelConfig, int]]:
        """All runs in their order: every rung of seed 0, then of seed 1 and so on."""
        return [
            (rung, config, seed) for seed in range(self.plan.seeds) for rung, config in self.rungs
        ]

    @property
    def unfinished(self) -> list[tuple[Rung, ModelConfig, int]]:
        """Those of `runs` that have no results yet."""
        return [run for run in self.runs if not self._file(run[0], run[2]).is_file()]

    def train(
        self,
        report: Callable[[Rung, int, StepReport], None] = lambda *_: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Finish what is not. True when all are; False when `stopped()` said so, with the
        state of the run at hand saved.

        Raises OssiaError where the runs would not be computed as those that are finished.
        """
        if self.unfinished:
            self._refuse_other_sums()
        for rung, config, seed in self.unfinished:
            states = self._file(rung, seed).with_suffix("")
            settings = self.plan.settings(packed=is_packed(config), seed=seed)
            trainer = self.trainer(config, settings, states)
            trainer.resume()

            def heard(step: StepReport, rung: Rung = rung, seed: int = seed) -> None:
                report(rung, seed, step)

            if not trainer.run(heard, stopped):
                return False
            with writing(self.out):
                write_json(self._file(rung, seed), self._evaluate(trainer, config))
                shutil.rmtree(states)
        return True

    def trainer(self, config: ModelConfig, settings: Settings, states: Path) -> Trainer:
        """One run at its start."""
        # What is trained is dense; MXFP4 is quantized from it.
        decoder = Decoder(with_expert_format(config, ExpertFormat.DENSE), TRAINING)
        decoder.init_weights(torch.Generator().manual_seed(settings.seed))

        def evaluate(loss: SummedLoss) -> dict[str, float]:
            # The experts as the step before saw them.
            if trainer.progress.step > settings.steps - settings.mxfp4_steps:
                loss = loss_of(_copy(decoder, rounded=True))
            bits = bits_per_byte(loss, self._held_out, settings.length)
            return {"held_out_bits_per_byte": bits[""]}

        batches = shards.TextBatches(self._shards, settings, int(self.text["separator"]))
        trainer = Trainer(decoder, batches, evaluate, settings, states)
        return trainer

    def stepper(self, config: ModelConfig) -> Callable[[], float]:
        """A training step a call, in tokens per second; packed experts are seen rounded."""
        settings = self.plan.settings(packed=is_packed(config), seed=0)
        if is_packed(config):
            settings = replace(settings, mxfp4_steps=settings.steps)
        trainer = self.trainer(config, settings, self.out)
        return lambda: trainer.step().tokens_per_second

    def activation_bytes(self, config: ModelConfig) -> int:
        """What a batch's forward pass keeps until its backward pass."""
        settings = self.plan.settings(packed=False, seed=0)
        decoder = self.trainer(config, settings, self.out).decoder
        batch = shards.TextBatches(self._shards, settings, int(self.text["separator"]))(0)
        objective = Objective(decoder, balance=settings.balance, z_loss=settings.z_loss)
        tokens = batch.inputs.numel()
        return kept_bytes(objective, batch.inputs, batch.targets, batch.documents, tokens)

    def results(self) -> dict[str, list[dict[str, Any]]]:
        """What `_evaluate` found, by rung, for each seed; all must be finished."""
        return {
            rung.name: [read_json(self._file(rung, seed)) for seed in range(self.plan.seeds)]
            for rung, _ in self.rungs
        }

    def _file(self, rung: Rung, seed: int) -> Path:
        return self.out / "runs" / f"{rung.name}-{seed}.json"

    def _evaluate(self, trainer: Trainer, config: ModelConfig) -> dict[str, Any]:
        """What a finished run is worth, at the length it was trained on and beyond."""
        trained, packed = trainer.decoder, is_packed(config)
        bits: dict[str, float] = {"dense": self._bits(_copy(trained), 1)}
        if _has_experts(config):
            bits["mxfp4"] = self._bits(_copy(trained, rounded=True), 1)

        def longer(yarn: bool) -> dict[str, Any]:
            decoders = {}
            for factor in FACTORS:
                seen = trained.config
                if yarn:
                    seen = with_yarn(seen, self.plan.length, factor)
                decoders[factor] = _copy(trained, seen, rounded=packed)
            return {
                "bits_per_byte": {k: self._bits(decoder, k) for k, decoder in decoders.items()},
                "by_position": self._bits_by_position(decoders[REACH]),
            }

        found = {
            "tokens": trainer.progress.tokens,
            "seconds": round(trainer.progress.seconds, 1),
            "curve": trainer.progress.curve,
            "bits_per_byte": bits["mxfp4" if packed else "dense"],
            "by_format": bits,
            "longer": {"as trained": longer(yarn=False)},
        }
        if isinstance(config.position, RoPE):
            found["longer"]["yarn"] = longer(yarn=True)
        return found

    def _bits(self, decoder: Decoder, factor: int) -> float:
        """Bits per byte in windows of so many times the training length."""
        return bits_per_byte(loss_of(decoder), self._held_out, factor * self.plan.length)[""]

    def _bits_by_position(self, decoder: Decoder) -> list[float]:
        length = REACH * self.plan.length
        return bits_by_position(decoder, self._held_out, length, self._token_bytes, STRETCHES)

    def _refuse_other_sums(self) -> None:
        """Raise OssiaError for other threads, which add up in another order, or versions."""
        threads, now = torch.get_num_threads(), versions()
        if threads != self.threads:
            raise OssiaError(
                f"--threads {threads}: {self.out} was begun with --threads {self.threads}, and its "
                "losses would differ with another number; go on with that, or start anew"
            )
        others = [f"{name} {v}" for name, v in self.versions.items() if now.get(name) != v]
        if others:
            raise OssiaError(
                f"{self.out} was begun with {', '.join(others)}, and its losses may differ with "
                "another version; go on with that, or start anew"
            )

    def _refuse_too_little(self) -> None:
        """Raise OssiaError now, not after the first run, for a text too short to train on or to
        read far into.
        """
        plan = self.plan
        shards.Batches(self._shards, plan.batch_size, plan.length, seed=0)
        if all(len(document.tokens) <= REACH * plan.length for document in self._held_out):
            raise OssiaError(
                f"--data {plan.data}: no held-out text has more than the {REACH * plan.length} "
                f"tokens that each rung is asked to read at once; use a shorter {option('length')}"
            )


def _copy(trained: Decoder, config: ModelConfig | None = None, *, rounded: bool = False) -> Decoder:
    """The weights as another config of the same shapes reads them, and their experts as MXFP4 holds
    them if they are `rounded`.
    """
    weights = dict(trained.state_dict())
    if rounded:
        for name in expert_names(trained.config):
            weights[name] = round_trip(weights[name])
    with torch.device("meta"):
        decoder = Decoder(config or trained.config, TRAINING)
    decoder.load_state_dict(weights, assign=True)
    return decoder.eval().requires_grad_(False)


def _has_experts(config: ModelConfig) -> bool:
    return any(isinstance(layer.feedforward, MoEConfig) for layer in config.layers)


def is_packed(config: ModelConfig) -> bool:
    """Whether its experts are MXFP4."""
    return config != with_expert_format(config, ExpertFormat.DENSE)
