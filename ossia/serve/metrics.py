"""What Prometheus reads: the engine's figures at that moment, and counts and latencies of requests
since the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from ossia.api import LLM, Finished

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_EACH = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
WHOLE = (0.01, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts what requests become; `text` is the page that Prometheus reads."""

    def __init__(self, llm: LLM) -> None:
        self._registry = registry = CollectorRegistry()
        registry.register(_EngineFigures(llm))
        self._requests = Counter(
            "ossia_requests",
            "Generations that ended, by how: a finish reason, timeout, cancelled or failed.",
            ["outcome"],
            registry=registry,
        )
        self._http = Counter(
            "ossia_http_responses", "HTTP responses.", ["path", "status"], registry=registry
        )
        self._http_seconds = Histogram(
            "ossia_http_response_seconds",
            "From a request's first byte to its response's last.",
            ["path"],
            buckets=WHOLE,
            registry=registry,
        )
        self._prompt = Counter("ossia_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._reasoning = Counter(
            "ossia_reasoning_tokens", "Generated tokens of reasoning.", registry=registry
        )
        self._malformed = Counter(
            "ossia_malformed_replies",
            "Replies in which the model broke the rules of its chat format.",
            registry=registry,
        )
        self._calls = Counter(
            "ossia_tool_calls",
            "Calls of tools that the server ran, by how they ended: ok or error.",
            ["tool", "outcome"],
            registry=registry,
        )
        self._first = Histogram(
            "ossia_time_to_first_token_seconds",
            "From a request's submission to its first token.",
            buckets=_FIRST,
            registry=registry,
        )
        self._each = Histogram(
            "ossia_time_per_output_token_seconds",
            "Mean time of a request's tokens after the first.",
            buckets=_EACH,
            registry=registry,
        )
        self._whole = Histogram(
            "ossia_generation_seconds",
            "From a request's submission to its last token.",
            buckets=WHOLE,
            registry=registry,
        )

    def finished(self, end: Finished) -> None:
        """Count a generation that came to its end."""
        self._requests.labels("timeout" if end.reason == "interrupted" else end.reason).inc()
        self._prompt.inc(end.prompt_tokens)
        self._reasoning.inc(end.reasoning_tokens)
        self._malformed.inc(end.malformed)
        self._first.observe(end.prefill_seconds)
        self._whole.observe(end.prefill_seconds + end.decode_seconds)
        if end.completion_tokens > 1:
            self._each.observe(end.decode_seconds / (end.completion_tokens - 1))

    def called(self, tool: str, failed: bool) -> None:
        """Count a call of a tool of the server's."""
        self._calls.labels(tool, "error" if failed else "ok").inc()

    def cancelled(self, count: int) -> None:
        """Count generations whose client hung up."""
        self._requests.labels("cancelled").inc(count)

    def failed(self, count: int) -> None:
        """Count generations that an error ended."""
        self._requests.labels("failed").inc(count)

    def responded(self, path: str, status: int, seconds: float) -> None:
        """Count an HTTP response and its time; `path` is one of the server's own, or "other"."""
        self._http.labels(path, str(status)).inc()
        self._http_seconds.labels(path).observe(seconds)

    def gauge(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Have a figure read from `value` at each look."""
        Gauge(f"ossia_{name}", what, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineFigures(Collector):
    """The driver's and the engine's figures, read when they are asked for."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        stats = self._llm.stats()
        yield _gauge("ossia_unfinished", "Generations that run or wait.", stats.unfinished)
        yield _gauge("ossia_queue_limit", "Unfinished generations taken.", stats.max_queue)
        engine = stats.engine
        if engine is None:
            return
        yield _gauge("ossia_running", "Generations in the batch.", engine.running)
        yield _gauge("ossia_waiting", "Generations that wait for the batch.", engine.waiting)
        pages = GaugeMetricFamily(
            "ossia_kv_pages",
            "Pages of keys and values, by the layers' window and the pages' state.",
            labels=["window", "state"],
        )
        for kind, counts in engine.pages.items():
            window = "all" if kind.window is None else str(kind.window)
            free = counts.total - counts.used - counts.cached
            for state, count in (("used", counts.used), ("cached", counts.cached), ("free", free)):
                pages.add_metric([window, state], count)
        yield pages
        for name, what, count in (
            ("prefix_queries", "Tokens of admitted prompts.", engine.prefix_queries),
            ("prefix_hits", "Tokens of prompts that the prefix cache had.", engine.prefix_hits),
            ("kv_evictions", "Cached pages that were given up for memory.", engine.evictions),
            ("preemptions", "Generations that gave their pages to older ones.", engine.preemptions),
            ("generated_tokens", "Tokens that were generated.", engine.generated_tokens),
            ("drafted_tokens", "Tokens that speculation drafted.", engine.drafted_tokens),
            ("accepted_tokens", "Drafted tokens that were accepted.", engine.accepted_tokens),
        ):
            yield CounterMetricFamily(f"ossia_{name}", what, value=count)


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, what, value=value)
