"""The number of threads and the precision to train with, by measurement."""

import pytest
import torch

from ossia.train.fastest import choose_threads, compare_precisions, faster
from ossia.train.settings import Precision


@pytest.fixture(autouse=True)
def four_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)


class Machine:
    """Passes whose speed depends on the threads, over batches of at most `batch` tokens."""

    def __init__(self, rates, batch=4096):
        self.rates, self.batch, self.passes = rates, batch, []

    def __call__(self, most):
        tokens, threads = min(most, self.batch), torch.get_num_threads()
        self.passes.append((tokens, threads))
        return tokens / self.rates[threads], tokens


@pytest.mark.parametrize(("rates", "chosen"), [({1: 2721, 4: 171}, 1), ({1: 900, 4: 3000}, 4)])
def test_the_faster_is_kept(rates, chosen):
    assert choose_threads(Machine(rates)) == pytest.approx(rates)
    assert torch.get_num_threads() == chosen


def test_a_pass_is_long_enough_to_be_measured_or_a_whole_batch():
    machine = Machine({1: 10_000, 4: 10_000})
    choose_threads(machine)
    assert {tokens for tokens, _ in machine.passes[-6:]} == {1024}  # a tenth of a second
    torch.set_num_threads(4)
    machine = Machine({1: 10_000, 4: 10_000}, batch=300)
    choose_threads(machine)
    assert {tokens for tokens, _ in machine.passes[-6:]} == {300}


def test_nothing_is_measured_where_there_is_no_choice(monkeypatch):
    machine = Machine({1: 1, 4: 1})
    torch.set_num_threads(1)
    assert choose_threads(machine) == {}
    torch.set_num_threads(4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert choose_threads(machine) == {}
    assert machine.passes == []
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("chosen", [Precision.FLOAT32, Precision.BFLOAT16])
def test_both_precisions_are_timed_over_the_same_tokens_in_turns(chosen):
    rates = {precision: 20_000 if precision is chosen else 2_000 for precision in Precision}
    passes = []

    def time_pass(precision):
        def timed(most):
            passes.append((precision, most))
            return most / rates[precision], most

        return timed

    found = compare_precisions(time_pass)
    assert found == pytest.approx({p: rates[p] for p in (Precision.FLOAT32, Precision.BFLOAT16)})
    assert faster(found) is chosen
    # The slower one needs no more tokens for a tenth of a second.
    assert passes[-6:] == [(Precision.FLOAT32, 256), (Precision.BFLOAT16, 256)] * 3
