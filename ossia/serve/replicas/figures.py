"""The figures of several replicas as one page for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from ossia.serve.metrics import WHOLE
from ossia.serve.replicas.balance import Place
from ossia.serve.replicas.prefix import Chain

# Of all replicas together: each of them would say the same.
_SHARED = {
    "ossia_kept_responses": "Responses that are kept.",
    "ossia_kept_bytes": "Bytes of the responses that are kept.",
}


class Figures:
    """What the front end counts."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._registry = registry = CollectorRegistry()
        self._sent = Counter(
            "ossia_routed_requests", "Requests sent to a replica.", ["replica"], registry=registry
        )
        self._blocks = Counter(
            "ossia_routed_blocks",
            "Blocks of 128 bytes of requests' texts, and whether the replica had read them before.",
            ["replica", "known"],
            registry=registry,
        )
        self._deaths = Counter(
            "ossia_replica_deaths", "Deaths of replicas.", ["replica"], registry=registry
        )
        self._retried = Counter(
            "ossia_retried_requests",
            "Requests sent again because a replica died before it had answered.",
            registry=registry,
        )
        self._broken = Counter(
            "ossia_broken_streams", "Streams whose replica died.", registry=registry
        )
        self._seconds = Histogram(
            "ossia_front_response_seconds",
            "From a request's first byte to its response's last, as clients see it.",
            ["status"],
            buckets=WHOLE,
            registry=registry,
        )

    def sent(self, place: Place, chain: Chain) -> None:
        """Count a request that goes to a replica."""
        name, known = place.replica.name, place.match(chain)
        self._sent.labels(name).inc()
        self._blocks.labels(name, "yes").inc(known)
        self._blocks.labels(name, "no").inc(len(chain) - known)

    def died(self, place: Place) -> None:
        self._deaths.labels(place.replica.name).inc()

    def retried(self) -> None:
        self._retried.inc()

    def broken(self) -> None:
        self._broken.inc()

    def responded(self, _path: str, status: int, seconds: float) -> None:
        """Count a response; the replicas count those that they made by their paths."""
        self._seconds.labels(str(status)).observe(seconds)

    def page(self, replicas: Mapping[str, str], kept: tuple[int, int]) -> bytes:
        """All figures in Prometheus' text format: those of the replicas' own pages, each with its
        name, and the front end's. kept: how many responses, and their bytes.
        """
        return generate_latest(_Page([*self._own(kept), *_labelled(replicas)]))

    def _own(self, kept: tuple[int, int]) -> Iterator[Metric]:
        up = GaugeMetricFamily("ossia_replica_up", "It takes requests.", labels=["replica"])
        for place in self._places:
            up.add_metric([place.replica.name], place.up)
        yield up
        for (name, what), value in zip(_SHARED.items(), kept, strict=True):
            yield GaugeMetricFamily(name, what, value=value)
        yield from self._registry.collect()


class _Page(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _labelled(replicas: Mapping[str, str]) -> list[Metric]:
    """The families of several pages as one of each name, whose samples say where they are from."""
    families: dict[str, Metric] = {}
    for replica, text in replicas.items():
        for family in text_string_to_metric_families(text):
            if family.name in _SHARED:
                continue
            one = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            one.samples += [
                sample._replace(labels={"replica": replica, **sample.labels})
                for sample in family.samples
            ]
    return list(families.values())
