"""What replicas get of a cluster's machines."""

from __future__ import annotations

import pytest

from ossia.errors import OssiaError
from ossia.options import EngineOptions, LoadOptions

pytest.importorskip("fastapi")

from ossia.serve.replicas.machines import Machine, Share, settings, share


@pytest.mark.parametrize(
    ("machines", "replicas", "expected"),
    [
        ([Machine(2, 0)], 2, Share(1, 0, 2)),
        ([Machine(16, 0)], 3, Share(5, 0, 3)),
        ([Machine(8, 0), Machine(8, 0)], 2, Share(8, 0, 1)),
        ([Machine(8, 0), Machine(2, 0)], 3, Share(2, 0, 3)),
        ([Machine(8, 4), Machine(8, 4)], 8, Share(1, 1, 4)),
        ([Machine(8, 1)], 2, Share(4, 0, 2)),  # not enough cards for all
    ],
)
def test_each_has_as_much_as_the_others_can_have(machines, replicas, expected):
    assert share(machines, replicas, LoadOptions()) == expected


def test_what_does_not_fit_is_refused():
    with pytest.raises(OssiaError, match="each needs a GPU, and the cluster has 1"):
        share([Machine(8, 1)], 2, LoadOptions(device="cuda"))
    with pytest.raises(OssiaError, match="2 of 1 threads fit; processors by machine: 2"):
        share([Machine(2, 0)], 3, LoadOptions())
    with pytest.raises(OssiaError, match="1 of 2 threads fit"):
        share([Machine(3, 0)], 2, LoadOptions(threads=2))


def test_a_replica_keeps_to_its_share():
    load, engine = settings(Share(3, 0, 2), LoadOptions(), EngineOptions(), 2**32)
    assert (load.device, load.threads, engine.kv_memory) == ("cpu", 3, 2**30)
    given = EngineOptions(kv_memory="1GiB")
    assert settings(Share(3, 0, 2), LoadOptions(), given, 2**32)[1] == given
    assert settings(Share(3, 0, 1), LoadOptions(), EngineOptions(), 2**32)[1].kv_memory is None
    load, engine = settings(Share(1, 1, 8), LoadOptions(), EngineOptions(), 2**32)
    assert (load.device, load.threads, engine.kv_memory) == ("cuda", None, None)
