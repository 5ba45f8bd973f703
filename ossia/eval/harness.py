"""`ossia` as a model of EleutherAI's lm-evaluation-harness: `lm_eval --model ossia`.

lm_eval finds it by the entry point that ossia declares. Releases of lm_eval that look for none take
the same arguments as `python -m ossia.eval`.
"""

# pyright: reportMissingImports=false
# (lm_eval is an extra.)

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from ossia import checkpoint, text
from ossia.api import LLM, Ask, Finished
from ossia.eval.local import NO_THINKING, check_effort
from ossia.text import Channel, Event, TextDelta

_AT_ONCE = 256  # requests before the engine; their results come together
_ITS_DEFAULT = "cuda:0"  # the device that lm_eval's command names on every machine
_FINAL = "<|channel|>final<|message|>"  # where harmony's answer begins

Encoded = tuple[tuple[str, str], list[int], list[int]]


@register_model("ossia")
class OssiaLM(TemplateLM):
    """pretrained: a checkpoint folder, a hub name, or "ossia-stdlib", the model in the package.

    max_length: tokens that a window is predicted from; one less than the context if None, so that
    the last of them can be scored too. reasoning_effort: of chats, for models that have it; "none"
    turns thinking off. prefix_token_id: what an empty context stands for; the tokenizer's BOS, else
    EOS. options: fields of `LoadOptions` and `EngineOptions`, such as dtype and max_batch.

    With chat templates the reasoning is no part of what is generated, and stop strings end the
    answer alone. Raises OssiaError for what cannot be loaded.
    """

    def __init__(
        self,
        pretrained: str = "ossia-stdlib",
        *,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        reasoning_effort: str | None = None,
        prefix_token_id: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        for unused in ("batch_size", "max_batch_size"):  # the engine forms its own batches
            options.pop(unused, None)
        if options.get("device") in (None, _ITS_DEFAULT):
            options.pop("device", None)  # ours is the first CUDA card if there is one
        self._llm = LLM(pretrained, **options)
        check_effort(self._llm, reasoning_effort)
        self._name, self._effort = pretrained, reasoning_effort
        self.max_length = max_length or self._llm.config.context_length - 1
        self.max_gen_toks = max_gen_toks
        self._is_chat = False
        assert self._llm.about is not None, "a checkpoint was loaded"
        folder, tokenizer = checkpoint.text_folder(self._llm.about.folder), self._llm.tokenizer
        special = text.special_tokens(folder, tokenizer)
        self._bos, self._eos = (
            tokenizer.control.get(special.get(role, "")) for role in ("bos_token", "eos_token")
        )
        self._prefix = prefix_token_id
        self._rank, self._world_size = 0, 1

    @property
    def eot_token_id(self) -> int:
        """See TemplateLM."""
        return min(self._llm.config.eos_ids, default=0) if self._eos is None else self._eos

    @property
    def prefix_token_id(self) -> int:
        """See TemplateLM."""
        found = self._prefix if self._prefix is not None else self._bos
        return self.eot_token_id if found is None else found

    @property
    def tokenizer_name(self) -> str:
        """A name for lm_eval's cache."""
        return self._name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """See TemplateLM. Control tokens are recognised by their names, as the harness expects."""
        tokenizer = self._llm.tokenizer
        ids = tokenizer.encode_control(string)
        if add_special_tokens is False or (
            add_special_tokens is None and ids[:1] == [self.prefix_token_id]
        ):
            return ids
        return [*tokenizer.prefix, *ids]

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """See TemplateLM. What texts share is read once: they are sorted by their ids, and the
        first that has a beginning goes before the others, which find it in the prefix cache.
        """
        texts = [(ids[1] + ids[2])[-(self.max_length + 1) :] for ids in requests]
        order = sorted(range(len(texts)), key=texts.__getitem__)
        found: list[tuple[float, bool]] = [(0.0, True)] * len(texts)
        with tqdm(total=len(texts), disable=disable_tqdm, desc="log-likelihoods") as bar:
            for some in _waves(order, [tuple(request[1]) for request in requests]):
                batch = [texts[i] for i in some]
                starts = [max(1, len(texts[i]) - len(requests[i][2])) for i in some]
                scored = self._llm.logprobs(batch, top=1, start=starts)
                for i, tokens in zip(some, scored, strict=True):
                    total = sum(token.logprob for token in tokens)
                    found[i] = (total, all(token.top[0][0] == token.token for token in tokens))
                bar.update(len(some))
        for i, request in enumerate(requests):
            if request[0] is not None:  # windows of a longer text have no key of their own
                self.cache_hook.add_partial("loglikelihood", request[0], found[i])
        return found

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """See LM: windows of max_length, each token scored once."""
        windows: list[Any] = []
        counts = []
        for (string,) in (request.args for request in requests):
            made = get_rolling_token_windows(
                token_list=self.tok_encode(string),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(None, *make_disjoint_window(window)) for window in made]
            windows += own
            counts.append(len(own))
        scored = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        totals = [sum(next(scored)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """See LM."""
        with tqdm(total=len(requests), disable=disable_tqdm, desc="generating") as bar:
            asks = [self._ask(*request.args) for request in requests]
            texts = asyncio.run(self._generate(asks, bar.update))
        for request, generated in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, generated)
        return texts

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """See LM. Without a generation prompt the last message is the beginning of the reply."""
        self._is_chat = True
        history = chat_history if add_generation_prompt else chat_history[:-1]
        effort = None if self._effort == NO_THINKING else self._effort
        ids = self._llm.chat_format.render(
            history, reasoning_effort=effort, thinking=self._effort != NO_THINKING
        )
        prompt = self._llm.tokenizer.decode(ids)
        if add_generation_prompt:
            return prompt
        begin = _FINAL if self._llm.chat_format.name == "harmony" else ""
        return prompt + begin + chat_history[-1]["content"]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """See TemplateLM: the name of the format, for lm_eval's record."""
        return self._llm.chat_format.name if chat_template else None

    def get_model_info(self) -> dict[str, Any]:
        """For lm_eval's results."""
        return {"model_dtype": self._llm.config.dtype, "model_name": self._name}

    def _ask(self, context: str, arguments: dict[str, Any]) -> Ask:
        """A request of the harness as one to the engine."""
        asked: Any = normalize_gen_kwargs(arguments, self.max_gen_toks)
        most = asked["max_gen_toks"]
        ids = self.tok_encode(context)[-(self.max_length - most) :]
        sampled = bool(asked.get("do_sample"))
        known = ("top_p", "top_k", "min_p", "repetition_penalty", "seed")
        ask = self._llm.prepare_text(
            ids,
            max_tokens=most,
            temperature=asked.get("temperature", 1.0) if sampled else 0.0,
            stop=[stop for stop in asked["until"] if stop],
            **{key: asked[key] for key in known if asked.get(key) is not None},  # type: ignore
        )
        sampling = ask.request.sampling
        if self._is_chat:
            stop_ids = sampling.stop_ids | self._llm.chat_format.stop_ids
            parser: Callable[[], text.Parser] = partial(self._llm.chat_format.parser, ids)
        else:
            stop_ids = sampling.stop_ids | {self.eot_token_id}
            tokenizer = self._llm.tokenizer  # without special tokens, as the harness decodes it
            parser = partial(text.PlainParser, tokenizer, stop_ids | tokenizer.special_ids)
        request = replace(ask.request, sampling=replace(sampling, stop_ids=stop_ids))
        return replace(ask, request=request, parser=parser)

    async def _generate(self, asks: list[Ask], done: Callable[[], object]) -> list[str]:
        """The answers, many at once."""
        room = asyncio.Semaphore(_AT_ONCE)

        async def generate(ask: Ask) -> str:
            async with room:
                events: list[Event | Finished] = [event async for event in self._llm.start(ask)]
            done()
            return "".join(
                event.text
                for event in events
                if isinstance(event, TextDelta) and event.channel is Channel.FINAL
            )

        return [*await asyncio.gather(*map(generate, asks))]


def _waves(order: Sequence[int], contexts: Sequence[tuple[int, ...]]) -> Iterator[Sequence[int]]:
    """Texts to score together: one that the others may share examples with, then one of each
    context, then the rest.
    """
    for start in range(0, len(order), _AT_ONCE):
        some = order[start : start + _AT_ONCE]
        first = {contexts[i]: i for i in reversed(some)}
        leaders = [i for i in some if first[contexts[i]] == i]
        rest = [i for i in some if first[contexts[i]] != i]
        yield from filter(None, (leaders[:1], leaders[1:], rest))
