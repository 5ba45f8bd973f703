"""What transformers loads is loaded here with the same logits, or refused by the name of the key;
what it refuses is refused.

OSSIA_VARIATIONS is the number of random variations; 300 take about a minute.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from ossia import load_model
from ossia.errors import OssiaError
from tests.checkpoint.variations import VOCAB, Variation

COUNT = int(os.environ.get("OSSIA_VARIATIONS", "60"))
TOKENS = torch.randint(2, VOCAB, (1, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.set_verbosity_error()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(COUNT))
def test_a_variation_is_read_as_transformers_reads_it(seed: int, tmp_path: Path) -> None:
    variation = Variation(seed)
    variation.write(tmp_path)
    what = f"{variation.family}: {', '.join(variation.applied)}"
    expected, found = theirs(tmp_path), ours(tmp_path)
    if variation.refused is not None:
        assert isinstance(found, OssiaError), f"{what}: loads"
        assert isinstance(expected, Exception) or variation.refused in str(found), what
    elif isinstance(expected, Exception):
        assert isinstance(found, OssiaError), f"{what}: loads, but not there ({expected})"
    else:
        assert isinstance(found, Tensor), f"{what}: {found}"
        torch.testing.assert_close(
            found, expected, rtol=1e-4, atol=1e-4, msg=lambda message: f"{what}\n{message}"
        )


def theirs(folder: Path) -> Tensor | Exception:
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            return model(TOKENS).logits
    except Exception as error:
        return error


def ours(folder: Path) -> Tensor | OssiaError:
    try:
        with torch.no_grad():
            return load_model(folder, dtype="float32")(TOKENS)
    except OssiaError as error:
        return error
