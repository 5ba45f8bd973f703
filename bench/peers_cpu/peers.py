"""The peers as `ossia.measure.speed.Model`: loaded, read a prompt, make greedy tokens."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch


class LlamaCpp:
    """llama.cpp on one sequence, through its C interface and with its own defaults."""

    sampled = None

    def __init__(self, path: Path, threads: int, context: int) -> None:
        import llama_cpp  # pyright: ignore[reportMissingImports]

        self._lib = lib = llama_cpp
        self._silent = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(self._silent, ctypes.c_void_p(0))
        lib.llama_backend_init()
        model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        params = lib.llama_context_default_params()
        params.n_ctx = context
        params.n_threads = params.n_threads_batch = threads
        self._context = lib.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context")
        self._chunk = params.n_batch
        self.vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self._next = 0

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        (prompt,) = prompts
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        for start in range(0, len(prompt), self._chunk):
            self._decode(prompt[start : start + self._chunk])
        self._next = int(self.logits().argmax())

    def step(self) -> None:
        self._decode([self._next])
        self._next = int(self.logits().argmax())

    def logits(self) -> torch.Tensor:
        """Of the last token, float32 (vocab,); valid until the next call."""
        pointer = self._lib.llama_get_logits_ith(self._context, -1)
        array = (ctypes.c_float * self.vocab_size).from_address(ctypes.addressof(pointer.contents))
        return torch.frombuffer(array, dtype=torch.float32)

    def _decode(self, tokens: Sequence[int]) -> None:
        array = (self._lib.llama_token * len(tokens))(*tokens)
        batch = self._lib.llama_batch_get_one(array, len(tokens))
        if code := self._lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode answered {code}")


class Transformers:
    """transformers with its default attention and cache, in inference mode."""

    sampled = None

    def __init__(self, folder: Path, dtype: str) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True
        )
        self._model = model.eval()
        self.vocab_size = model.config.vocab_size
        self._cache = self._next = None

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        self._cache = None
        self._pass(torch.tensor(prompts))

    def step(self) -> None:
        self._pass(self._next)

    @torch.inference_mode()
    def _pass(self, ids: torch.Tensor | None) -> None:
        output = self._model(
            input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._cache = output.past_key_values
        self._next = output.logits[:, -1].argmax(dim=-1, keepdim=True)
