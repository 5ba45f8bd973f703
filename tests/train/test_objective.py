"""The objective: documents packed in a row do not meet, and an update moves what it should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ossia.model import Decoder
from ossia.ops import Documents
from ossia.train.corpus.shards import documents_in
from ossia.train.evaluate import loss_of
from ossia.train.loss import IGNORED
from ossia.train.objective import Objective
from ossia.train.optimizer import build_optimizers
from ossia.train.runs.presets import PRESETS
from ossia.train.settings import Optimizer, Settings
from tests.models import build, small

SEPARATOR = 7


@pytest.mark.parametrize("learned", [False, True])
def test_a_packed_document_is_read_as_if_it_were_alone(learned: bool) -> None:
    decoder = build(small(learned)).eval()
    lengths = (9, 1, 14, 6)
    texts = [
        torch.randint(8, 50, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths
    ]
    for text in texts:
        text[0] = SEPARATOR
    row = torch.cat(texts)[None]
    documents = documents_in(row, SEPARATOR)
    with torch.no_grad():
        together = decoder(row, where=Documents(documents))[0].split(lengths)
        for text, found in zip(texts, together, strict=True):
            torch.testing.assert_close(found, decoder(text[None])[0], rtol=1e-4, atol=1e-5)
        # And without the mask it would not be.
        assert not torch.allclose(decoder(row)[0, 9:], torch.cat(together)[9:], atol=1e-3)


def test_the_objective_is_the_loss_the_balance_and_the_z_loss() -> None:
    decoder = build(small())
    tokens = torch.randint(8, 50, (2, 21), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    losses = Objective(decoder, balance=0.5, z_loss=0.25).train()(inputs, targets, None, 40)
    logits = decoder(inputs).flatten(0, 1)
    cross_entropy = F.cross_entropy(logits, targets.flatten())
    torch.testing.assert_close(losses.cross_entropy, cross_entropy.detach())
    assert losses.balance is not None
    squares = logits.logsumexp(-1).square().mean()
    torch.testing.assert_close(losses.total, cross_entropy + 0.5 * losses.balance + 0.25 * squares)
    torch.testing.assert_close(loss_of(decoder)(inputs, targets) / 40, losses.cross_entropy)


@pytest.mark.parametrize("recomputed", [False, True])
def test_padding_takes_no_part_in_the_balance(recomputed: bool) -> None:
    """A row with padding has the balance, and routers the gradient, of the row without."""
    decoder = build(small())
    if recomputed:
        decoder.recompute_layers()
    objective = Objective(decoder, balance=0.5, z_loss=0.0).train()
    tokens = torch.randint(8, 50, (1, 21), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    documents = torch.ones_like(inputs)
    found = []
    for padding in (0, 13):
        decoder.zero_grad()
        losses = objective(
            F.pad(inputs, (0, padding)),
            F.pad(targets, (0, padding), value=IGNORED),
            F.pad(documents, (0, padding), value=2),
            20,
        )
        losses.total.backward()
        assert losses.balance is not None
        router = decoder.get_parameter("layers.0.feedforward.router.weight")
        assert router.grad is not None
        found.append((losses.balance, router.grad.clone()))
    torch.testing.assert_close(found[1], found[0])


def test_muon_moves_the_hidden_matrices_and_adamw_the_rest() -> None:
    decoder = build(small())
    adamw, muon = build_optimizers(decoder, Settings(optimizer=Optimizer.MUON))
    names = {id(p): name for name, p in decoder.named_parameters()}
    moved = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert moved == {f"layers.{i}.attention.{x}.weight" for i in (0, 1) for x in "qkvo"}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert moved | rest == set(names.values())
    assert not moved & rest
    dense = Decoder(replace(PRESETS["small-qwen3"], vocab_size=50))
    assert len(
        build_optimizers(dense, Settings(optimizer=Optimizer.MUON))[1].param_groups[0]["params"]
    ) == (6 * 7)
