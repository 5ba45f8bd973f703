"""Short runs of the benchmarks that try to break a server: clients at once, some of whom hang up
midway, and kills.
"""

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


def test_responses_that_clients_received_outlive_kills() -> None:
    from bench.kept_responses import kill_servers

    figures = kill_servers(rounds=2, clients=4)  # raises if one is lost
    assert figures["kills"] == 2
    assert figures["acknowledged"].total() > 0
