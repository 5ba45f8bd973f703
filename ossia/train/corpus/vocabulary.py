"""A byte-level BPE vocabulary learned from a text, with harmony's control tokens, written as a
Hugging Face tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ossia.errors import OssiaError
from ossia.text.harmony.grammar import ControlToken
from ossia.text.tokenizer import END_OF_TEXT

START_OF_TEXT = "<|startoftext|>"
# The control tokens of harmony, in the order of gpt-oss's ids.
CONTROL_TOKENS = (
    START_OF_TEXT,
    END_OF_TEXT,
    ControlToken.RETURN,
    ControlToken.CONSTRAIN,
    ControlToken.CHANNEL,
    ControlToken.START,
    ControlToken.END,
    ControlToken.MESSAGE,
    ControlToken.CALL,
)
SMALLEST_VOCABULARY = 256 + len(CONTROL_TOKENS)

# The pre-tokenization of o200k_base (tiktoken, MIT): a word with the character before it and an
# English contraction after it, a run of punctuation, line ends with the space before them, other
# space. Except that each digit is separate, as in Qwen: a small model adds digit by digit.
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPLIT_PATTERN = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


def learn(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` ids: the 256 bytes first, then merges by frequency,
    control tokens last.

    Deterministic. Raises OssiaError if `vocab_size` is too small for bytes and control tokens.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise OssiaError(
            f"--vocab-size {vocab_size}: single bytes and control tokens alone "
            f"take {SMALLEST_VOCABULARY}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS]
    )
    return tokenizer


def control_id(tokenizer: Tokenizer, token: str) -> int:
    """The id that `learn` gave a control token."""
    number = tokenizer.token_to_id(token)
    assert number is not None, token
    return number


def write(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """Write tokenizer.json, and the tokenizer_config.json that transformers reads."""
    # The library's own save raises a bare Exception if the disk is full.
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START_OF_TEXT,
        "eos_token": ControlToken.RETURN,
        "pad_token": END_OF_TEXT,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
