"""Parts to build an LLM from without a model: an engine that replays ids, and a vocabulary of bytes
and control tokens.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ossia import text
from ossia.api import LLM
from ossia.config import (
    GELU,
    AttentionConfig,
    LayerConfig,
    LayerNorm,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
)
from ossia.engine import (
    Failure,
    LogitsError,
    Output,
    PromptOutput,
    Request,
    TokenLogprob,
    TokenOutput,
)
from ossia.engine.engine import EngineStats
from ossia.engine.request import check_prompt, check_vocabulary

CONTROL = (
    "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>",
    "<|start|>", "<|end|>", "<|message|>", "<|call|>",
)  # fmt: skip
VOCAB_SIZE = 256 + len(CONTROL)


def write_byte_tokenizer(folder: Path, control: Sequence[str] = CONTROL) -> Path:
    """A tokenizer.json whose first 256 ids are the bytes, in no particular order, and then the
    control tokens.
    """
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(control))
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    return folder


def small_config(context_length: int = 4096) -> ModelConfig:
    attention = AttentionConfig(num_heads=1, num_kv_heads=1, head_dim=2)
    return ModelConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=2,
        context_length=context_length,
        layers=(LayerConfig(attention, MLPConfig(2, GELU())),),
        position=LearnedPositions(),
        norm=LayerNorm(),
    )


class ScriptedEngine:
    """Answers the n-th request with the n-th script, a token a step; the end of a script is the end
    of the context, or, if it is `endless`, goes on repeating its last token.
    """

    def __init__(self, scripts: Iterable[Sequence[int]], config: ModelConfig) -> None:
        self.config = config
        self.requests: list[Request] = []
        self.aborted: list[int] = []
        self.running: dict[int, deque[int]] = {}
        self.most_at_once = 0
        self.broken: set[int] = set()  # requests whose logits are not numbers
        self.endless = False
        self._read: set[int] = set()  # requests whose prompts were read
        self.may_step = threading.Event()  # steps wait for it
        self.may_step.set()
        self._scripts = iter(scripts)

    @property
    def has_work(self) -> bool:
        return bool(self.running)

    def check(self, request: Request) -> None:
        answered = request.sampling.max_tokens != 0
        vocab_size, length = self.config.vocab_size, self.config.context_length
        check_prompt(request.prompt, vocab_size, length, answered=answered)
        check_vocabulary(request.sampling, self.config.vocab_size)

    def add(self, request: Request) -> int:
        self.requests.append(request)
        id = len(self.requests) - 1
        self.running[id] = deque(next(self._scripts))
        return id

    def step(self) -> list[Output]:
        assert self.may_step.wait(300), "the test forgot to let the engine step"
        self.most_at_once = max(self.most_at_once, len(self.running))
        outputs: list[Output] = []
        for id in self.broken & self.running.keys():
            del self.running[id]
            outputs.append(Failure(id, LogitsError(id)))
        for id, script in list(self.running.items()):
            sampling = self.requests[id].sampling
            if id not in self._read:
                self._read.add(id)
                outputs += self._read_prompt(id)
            if id not in self.running:
                continue
            token = script.popleft()
            if self.endless and not script:
                script.append(token)
            reason = "stop" if token in sampling.stop_ids else None if script else "length"
            if reason:
                del self.running[id]
            asked = sampling.logprobs is not None
            outputs.append(
                TokenOutput(id, token, -0.5 if asked else None, ((token, -0.5),) * asked, reason)
            )
        return outputs

    def _read_prompt(self, id: int) -> list[PromptOutput]:
        """Every token of a prompt has the log-probability -0.25, and id 0 the best, -0.125."""
        request = self.requests[id]
        sampling, prompt = request.sampling, request.prompt
        if sampling.max_tokens == 0:
            del self.running[id]
        elif sampling.prompt_logprobs is None:
            return []
        scores = ()
        if sampling.prompt_logprobs is not None:
            top = ((0, -0.125),) * sampling.prompt_logprobs
            tokens = prompt[sampling.prompt_logprobs_from :]
            scores = tuple(TokenLogprob(token, -0.25, top) for token in tokens)
        return [PromptOutput(id, scores, "length" if sampling.max_tokens == 0 else None)]

    def abort(self, request_id: int) -> None:
        self.running.pop(request_id, None)
        self.aborted.append(request_id)

    def stats(self) -> EngineStats:
        return EngineStats(len(self.running), 0, {}, 0, 0, 0, 0, 0, 7, 5)


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it becomes true: what another thread does is waited for, generously."""
    end = time.monotonic() + 300
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


def scripted_llm(
    folder: Path, scripts: Sequence[str], context_length: int = 4096, **generation_config
) -> tuple[LLM, ScriptedEngine]:
    """An LLM over the tokenizer in `folder` that answers with scripts, control tokens by name."""
    tokenizer = text.load_tokenizer(folder)
    encoded = [tokenizer.encode_control(script) for script in scripts]
    engine = ScriptedEngine(encoded, small_config(context_length))
    chat_format = text.load_format(folder, tokenizer)
    return LLM.from_parts(engine, tokenizer, chat_format, generation_config), engine
