"""A short run of `python -m bench.serve soak`: clients at once, some of whom hang up midway."""

from __future__ import annotations

import pytest

pytest.importorskip("uvicorn")


def test_a_server_stays_calm_under_clients_that_hang_up() -> None:
    from bench.serve.soak import soak

    soaked = soak(clients=6, seconds=3, arguments=[])
    assert list(soaked.faults()) == []
    assert soaked.tally.outcomes["answered"] > 0
    assert soaked.tally.outcomes["hung up"] > 0
    assert len(soaked.tally.first) == soaked.tally.outcomes.total()
