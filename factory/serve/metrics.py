"""What Prometheus is told."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from factory.inference.types import Engine

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class _OfEngine(Collector):
    """Asked when somebody looks."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        now = self._engine.count()
        yield GaugeMetricFamily("factory_requests_running", "Answers that are being written.", now.running)
        yield GaugeMetricFamily("factory_requests_waiting", "Requests that wait for a place.", now.waiting)
        yield CounterMetricFamily("factory_generated_tokens", "Tokens of answers.", now.tokens)
        yield CounterMetricFamily("factory_prompt_tokens", "Tokens of prompts.", now.prompt_tokens)


class Metrics:
    def __init__(self, engine: Engine):
        self._registry = CollectorRegistry()
        self._registry.register(_OfEngine(engine))
        self._requests = Counter(
            "factory_http_requests", "Requests by path and status.", ["path", "status"], registry=self._registry
        )
        self.first_token = Histogram(
            "factory_first_token_seconds",
            "From a request to its first token.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.whole = Histogram(
            "factory_answer_seconds", "From a request to its last token.", buckets=_SECONDS, registry=self._registry
        )
        self._paths: frozenset[str] = frozenset()

    def know(self, paths: Iterable[str]) -> None:
        """What is counted by its name: any other path is `other`, or a client could fill the memory with names."""
        self._paths = frozenset(paths)

    def count(self, path: str, status: int) -> None:
        self._requests.labels(path if path in self._paths else "other", str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
