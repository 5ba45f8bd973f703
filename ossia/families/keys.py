"""Reads config.json so that each key is used, ignored on purpose, or refused by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from ossia.config import ModelConfig
from ossia.errors import OssiaError

_Part = TypeVar("_Part")

REQUIRED: Any = object()
"""The default of a required key."""

# Far above any real model, yet small enough to refuse a file with a wrong digit before it exhausts
# memory or time.
MAX_SIZE = 2**31 - 1
MAX_CONTEXT = 2**27
MAX_REPEATS = 10_000  # layers, or experts in one

GENERIC_IGNORED = (
    # Metadata of the program that wrote the file.
    "transformers_version",
    "_name_or_path",
    "_commit_hash",
    "unsloth_fixed",
    "unsloth_version",
    # How transformers runs a model, without effect on the result.
    "use_cache",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    "torchscript",
    "use_bfloat16",
    "gradient_checkpointing",
    "chunk_size_feed_forward",
    "tie_last_hidden_states",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "experts_implementation",
    "tf_legacy_loss",
    # Heads and tasks other than language modelling.
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "finetuning_task",
    "task_specific_params",
    # Tokenizer hints; the tokenizer's own files take precedence.
    "tokenizer_class",
    "prefix",
    "sep_token_id",
    "decoder_start_token_id",
    # Generation defaults of old files, now in generation_config.json.
    "max_length",
    "min_length",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "num_return_sequences",
    "output_scores",
    "return_dict_in_generate",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
)
"""Keys that transformers may write for any model and that have no effect here."""

_GENERIC_FIXED: dict[str, Any] = {
    # These change the architecture in ways that no family here supports.
    "is_encoder_decoder": False,
    "is_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
    "per_layer_config": {},
}


def show(value: Any) -> str:
    """A value as written in the file."""
    return json.dumps(value, default=str)


class Keys:
    """A reader of one JSON object that records which keys were read.

    Each getter takes a name and its synonyms, which must agree if several are present. A null
    value counts as absent. All errors are `OssiaError`s that start with `source` and name the key,
    preceded by `prefix` for a nested object.
    """

    def __init__(self, data: dict[str, Any], source: str, prefix: str = "") -> None:
        self.data = data
        self.source = source
        self.prefix = prefix
        self._used: set[str] = set()

    def error(self, name: str, problem: str) -> OssiaError:
        return OssiaError(f"{self.source}: key '{self.prefix}{name}' {problem}")

    def integer(
        self, *names: str, default: Any = REQUIRED, minimum: int = 1, maximum: int = MAX_SIZE
    ) -> Any:
        name, value = self._take(names, int, "an integer", default)
        if value is not None and value < minimum:
            raise self.error(name, f"must be at least {minimum}, not {value}")
        if value is not None and value > maximum:
            raise self.error(name, f"must be at most {maximum}, not {value}")
        return value

    def number(
        self,
        *names: str,
        default: Any = REQUIRED,
        minimum: float = 0.0,
        maximum: float = sys.float_info.max,
    ) -> Any:
        name, value = self._take(names, (int, float), "a number", default)
        if value is None:
            return None
        if not minimum <= value <= maximum:  # so neither NaN nor infinity
            at_most = "" if maximum == sys.float_info.max else f" and at most {maximum:g}"
            raise self.error(name, f"must be at least {minimum:g}{at_most}, not {value}")
        return float(value)

    def boolean(self, *names: str, default: Any = REQUIRED) -> Any:
        return self._take(names, bool, "true or false", default)[1]

    def text(self, *names: str, default: Any = REQUIRED) -> Any:
        return self._take(names, str, "a string", default)[1]

    def items(self, *names: str, default: Any = REQUIRED) -> Any:
        return self._take(names, list, "a list", default)[1]

    def nested(self, *names: str) -> Keys | None:
        """The reader of a nested object, or None if it is absent."""
        name, value = self._take(names, dict, "an object", None)
        return None if value is None else Keys(value, self.source, f"{self.prefix}{name}.")

    def only(self, name: str, value: Any) -> None:
        """Require the key to be absent or to have this value, the only one supported here."""
        self._used.add(name)
        given = self.data.get(name)
        if given is not None and given != value:
            raise self.error(name, f"is {show(given)}; only {show(value)} is supported")

    def finish(self, ignored: Iterable[str] = ()) -> None:
        """Refuse every key that was neither read nor is in `ignored`."""
        unknown = sorted(self.data.keys() - self._used - set(ignored))
        if unknown:
            names = ", ".join(f"'{self.prefix}{name}'" for name in unknown)
            raise OssiaError(f"{self.source}: unknown key{'s' * (len(unknown) > 1)} {names}")

    def _take(self, names: tuple[str, ...], kind: Any, description: str, default: Any) -> Any:
        """(name, value) of the first synonym that is present, else (first name, default)."""
        self._used.update(names)
        present = [name for name in names if self.data.get(name) is not None]
        if not present:
            if default is REQUIRED:
                shown = "' or '".join(self.prefix + name for name in names)
                raise OssiaError(f"{self.source}: missing key '{shown}'")
            return names[0], default
        for name in present:
            value = self.data[name]
            # bool is an int to Python, not to JSON
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise self.error(name, f"must be {description}, not {show(value)}")
            if name != present[0] and value != self.data[present[0]]:
                contradicted = f"'{self.prefix}{present[0]}': {show(self.data[present[0]])}"
                raise self.error(name, f"is {show(value)}, which contradicts {contradicted}")
        return present[0], self.data[present[0]]


def read_generic(keys: Keys, architectures: tuple[str, ...], dtype: str, tied: bool) -> dict:
    """The `ModelConfig` fields whose keys all families share; `dtype` and `tied` are defaults.

    Refuses what no family supports: encoders, pruned heads, and other heads than language models'.
    """
    for name, value in _GENERIC_FIXED.items():
        keys.only(name, value)
    named = keys.items("architectures", default=[architectures[0]])
    if not set(architectures) & {name for name in named if isinstance(name, str)}:
        supported = " or ".join(architectures)
        raise keys.error("architectures", f"is {show(named)}; only {supported} is supported")
    dtype = keys.text("dtype", "torch_dtype", default=dtype)
    if dtype not in ("float32", "bfloat16", "float16"):
        name = "dtype" if "dtype" in keys.data else "torch_dtype"
        raise keys.error(name, f"is '{dtype}'; only float32, bfloat16 and float16 are supported")
    return {
        "vocab_size": keys.integer("vocab_size"),
        "tied_embeddings": keys.boolean("tie_word_embeddings", default=tied),
        "dtype": dtype,
        "init_std": keys.number("initializer_range", default=0.02),
        "bos_id": keys.integer("bos_token_id", default=None, minimum=0),
        "eos_ids": _end_ids(keys),
        "pad_id": keys.integer("pad_token_id", default=None, minimum=0),
    }


def _end_ids(keys: Keys) -> tuple[int, ...]:
    if not isinstance(keys.data.get("eos_token_id"), list):
        token = keys.integer("eos_token_id", default=None, minimum=0)
        return () if token is None else (token,)
    tokens = keys.items("eos_token_id")
    if not all(type(token) is int and token >= 0 for token in tokens):
        raise keys.error("eos_token_id", f"must hold token ids, not {show(tokens)}")
    return tuple(tokens)


def write_generic(config: ModelConfig, architecture: str, model_type: str) -> dict[str, Any]:
    """The keys that `read_generic` reads, and those by which transformers selects the class."""
    ends = config.eos_ids
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_embeddings,
        # The older of its two names: every version of transformers and all other programs read it.
        "torch_dtype": config.dtype,
        "initializer_range": config.init_std,
        "bos_token_id": config.bos_id,
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends) or None,
        "pad_token_id": config.pad_id,
    }


def read_quantization(keys: Keys, supported: tuple[str, ...] = ()) -> str | None:
    """The `quant_method`, None if not quantized; other methods than `supported` are refused."""
    quantization = keys.nested("quantization_config")
    if quantization is None:
        return None
    method = quantization.text("quant_method")
    if method not in supported:
        raise quantization.error(
            "quant_method",
            f"is '{method}', which is not supported for this model; "
            f"use its checkpoint in {' or '.join((*supported, 'bfloat16'))}",
        )
    # modules_to_not_convert repeats which tensors are packed, as their names also show; dequantize
    # tells transformers what to do after reading.
    quantization.finish(ignored=("modules_to_not_convert", "dequantize"))
    return method


def expect(part: object, kind: type[_Part], path: str) -> _Part:
    """`part` if it has the type that the family's keys express. Raises `OssiaError` otherwise."""
    if not isinstance(part, kind):
        raise OssiaError(f"{path} is {type(part).__name__}, not {kind.__name__}")
    return part
