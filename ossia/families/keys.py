"""Reads config.json as transformers does, so that each key is used, ignored on purpose, or refused
by name.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from ossia.config import ModelConfig
from ossia.errors import OssiaError, shortened

_Part = TypeVar("_Part")

_log = logging.getLogger(__name__)

REQUIRED: Any = object()
"""The default of a required key."""

# Far above any real model, yet small enough to refuse a file with a wrong digit before it exhausts
# memory or time.
MAX_SIZE = 2**31 - 1
MAX_CONTEXT = 2**24
MAX_LAYERS = 4096
MAX_REPEATS = 10_000  # experts in a layer
MAX_EXPERTS = 65_536  # in all layers

GENERIC_IGNORED = (
    # Metadata of the program that wrote the file.
    "transformers_version",
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "model_name",
    "trl_version",
    "unsloth_fixed",
    "unsloth_version",
    # How transformers runs a model, without effect on the result.
    "use_cache",
    "return_dict",
    "use_return_dict",
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
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "keys_to_ignore_at_inference",
    "max_seq_len_cached",
    "pretraining_tp",
    "tf_legacy_loss",
    # Decoders without an encoder are the same with and without it.
    "is_decoder",
    "tie_encoder_decoder",
    "cross_attention_hidden_size",
    # Heads and tasks other than language modelling.
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "finetuning_task",
    "task_specific_params",
    "classifier_dropout",
    # Tokenizer hints; the tokenizer's own files take precedence.
    "tokenizer_class",
    "model_max_length",
    "prefix",
    "cls_token_id",
    "mask_token_id",
    "sep_token_id",
    "unk_token_id",
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

_DTYPE_NAMES = {
    "float32": "float32",
    "float": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
}
"""torch's names of the supported dtypes, and the name that `ModelConfig` gives them."""

_GENERIC_FIXED: dict[str, Any] = {
    # These change the architecture in ways that no family here supports.
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "per_layer_config": {},
}

GENERIC_NEUTRAL: dict[str, Any] = {
    "attn_logit_softcapping": 0,
    "auto_map": {},
    "clip_qkv": 0,
    "embedding_multiplier": 1,
    "final_logit_softcapping": 0,
    "first_k_dense_replace": 0,
    "lm_head_bias": False,
    "logit_scale": 1,
    "logits_scaling": 1,
    "mlp_bias": False,
    "n_shared_experts": 0,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 0,
    "qkv_bias": False,
    "residual_multiplier": 1,
    "rotary_pct": 1,
    "routed_scaling_factor": 1,
    "shared_expert_intermediate_size": 0,
    "use_mrope": False,
}
"""Keys of other architectures, at the value that makes them one of those here."""


def show(value: Any) -> str:
    """A value as written in the file, shortened if it is long."""
    return shortened(json.dumps(value, default=str))


class Keys:
    """A reader of one JSON object that records which keys were read.

    Each getter takes a name and its synonyms. If several are present, the first counts, as in
    transformers, and a warning names one that contradicts it. A null value counts as absent.
    `assumed` are the values that transformers assumes of keys that the file does not have.
    All errors are `OssiaError`s that start with `source` and name the key, preceded by `prefix` for
    a nested object.
    """

    def __init__(
        self,
        data: dict[str, Any],
        source: str,
        *,
        prefix: str = "",
        assumed: Mapping[str, Any] | None = None,
        ignore_unknown: bool = False,
    ) -> None:
        self.data = data
        self.source = source
        self.prefix = prefix
        self._assumed = assumed or {}
        self._ignore_unknown = ignore_unknown
        self._used: set[str] = set()

    def error(self, name: str, problem: str) -> OssiaError:
        return OssiaError(f"{self.source}: key '{self.prefix}{name}' {problem}")

    def integer(
        self, *names: str, default: Any = REQUIRED, minimum: int = 1, maximum: int = MAX_SIZE
    ) -> Any:
        name, value = self._take(names, int, "an integer", default)
        if value is not None and value < minimum:
            raise self.error(name, f"must be at least {minimum}, not {show(value)}")
        if value is not None and value > maximum:
            raise self.error(name, f"must be at most {maximum}, not {show(value)}")
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
            raise self.error(name, f"must be at least {minimum:g}{at_most}, not {show(value)}")
        return float(value)

    def boolean(self, *names: str, default: Any = REQUIRED) -> Any:
        return self._take(names, bool, "true or false", default)[1]

    def text(self, *names: str, default: Any = REQUIRED) -> Any:
        return self._take(names, str, "a string", default)[1]

    def items(self, *names: str, default: Any = REQUIRED) -> Any:
        return self._take(names, list, "a list", default)[1]

    def nested(self, *names: str) -> Keys | None:
        """The reader of a nested object, or None if it is absent or empty."""
        name, value = self._take(names, dict, "an object", None)
        if value is None:
            return None
        prefix, ignore = f"{self.prefix}{name}.", self._ignore_unknown
        return Keys(value, self.source, prefix=prefix, ignore_unknown=ignore)

    def idle(self, name: str) -> Any:
        """The value of a key that has no effect, of any type."""
        self._used.add(name)
        return self.data.get(name)

    def only(self, name: str, *values: Any) -> None:
        """Require the key to be absent or to have one of these values, which mean the same."""
        self._used.add(name)
        given = self.data.get(name)
        if given is not None and given not in values:
            supported = " or ".join(map(show, values))
            raise self.error(name, f"is {show(given)}; only {supported} is supported")

    def finish(self, ignored: Iterable[str] = (), neutral: Mapping[str, Any] | None = None) -> None:
        """Refuse every key that was neither read nor is in `ignored`, unless its value is null or
        its value in `neutral`.
        """
        unread = self.data.keys() - self._used - set(ignored)
        idle = neutral or {}
        unknown = sorted(
            name
            for name in unread
            if (value := self.data[name]) is not None
            and not (name in idle and _is_idle(value, idle[name]))
        )
        if not unknown:
            return
        names = [f"'{self.prefix}{shortened(name)}'" for name in unknown[:5]]
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        self.refuse_unknown(f"key{'s' * (len(unknown) > 1)} {', '.join(names)}{more}")

    def refuse_unknown(self, what: str) -> None:
        """Refuse something unknown, or warn of it if the unknown is to be ignored."""
        if not self._ignore_unknown:
            raise OssiaError(
                f"{self.source}: unknown {what}; --ignore-unknown-keys loads the model all the same"
            )
        warn(f"{self.source}: ignoring unknown {what}")

    def _take(self, names: tuple[str, ...], kind: Any, description: str, default: Any) -> Any:
        """(name, value) of the first synonym that is present, else (first name, default)."""
        self._used.update(names)
        present = [name for name in names if self.data.get(name) not in (None, {})]
        if not present:
            if names[0] in self._assumed and not any(name in self.data for name in names):
                return names[0], self._assumed[names[0]]
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
                counts = f"'{self.prefix}{present[0]}': {show(self.data[present[0]])}"
                warn(
                    f"{self.source}: key '{self.prefix}{name}' is {show(value)} and does not "
                    f"count; {counts} does, as in transformers"
                )
        return present[0], self.data[present[0]]


def _is_idle(value: Any, neutral: Any) -> bool:
    """Whether a value is the neutral one; False is not 0 here."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral


@lru_cache(maxsize=1024)
def warn(message: str) -> None:
    """Log a warning, once in a process however often the file is read."""
    _log.warning("%s", message)


def read_generic(keys: Keys, architectures: tuple[str, ...], dtype: str, tied: bool) -> dict:
    """The `ModelConfig` fields whose keys all families share; `dtype` and `tied` are defaults.

    `architectures` are the supported classes. Refuses what no family supports: encoders, pruned
    heads, and other heads than language models'.
    """
    for name, value in _GENERIC_FIXED.items():
        keys.only(name, value)
    named = keys.items("architectures", default=[]) or [architectures[0]]
    if not set(architectures) & {name for name in named if isinstance(name, str)}:
        supported = " or ".join(architectures)
        keys.refuse_unknown(f"architectures {show(named)} (known: {supported})")
    dtype = keys.text("dtype", "torch_dtype", default=dtype)
    dtype = _DTYPE_NAMES.get(dtype.removeprefix("torch."), dtype)
    if dtype not in _DTYPE_NAMES.values():
        name = "dtype" if "dtype" in keys.data else "torch_dtype"
        raise keys.error(
            name,
            f"is {show(dtype)}; only float32, bfloat16 and float16 are supported: choose one by "
            "--dtype",
        )
    return {
        "vocab_size": keys.integer("vocab_size"),
        "tied_embeddings": keys.boolean("tie_word_embeddings", default=tied),
        "dtype": dtype,
        "init_std": keys.number("initializer_range", default=0.02),
        "bos_id": _token_id(keys, "bos_token_id"),
        "eos_ids": _end_ids(keys),
        "pad_id": _token_id(keys, "pad_token_id"),
    }


def _token_id(keys: Keys, name: str) -> int | None:
    """The id; None if the key is absent, null or negative, as some files say that there is none."""
    token = keys.integer(name, default=None, minimum=-MAX_SIZE)
    return token if token is not None and token >= 0 else None


def _end_ids(keys: Keys) -> tuple[int, ...]:
    if not isinstance(keys.data.get("eos_token_id"), list):
        token = _token_id(keys, "eos_token_id")
        return () if token is None else (token,)
    tokens = keys.items("eos_token_id")
    if not all(type(token) is int for token in tokens):
        raise keys.error("eos_token_id", f"must hold token ids, not {show(tokens)}")
    return tuple(token for token in tokens if token >= 0)


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
