"""The service's figures in Prometheus' text format, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from enginehouse.tinker.service_status import ServiceStatus

_PREFIX = "enginehouse_tinker_"


def make_registry(status: Callable[[], ServiceStatus]) -> CollectorRegistry:
    """A registry of one service; nothing in it names a user or a model."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Service(status))
    return registry


def metrics_text(registry: CollectorRegistry) -> bytes:
    """All figures, as they are now."""
    return generate_latest(registry)


class _Service(Collector):
    def __init__(self, status: Callable[[], ServiceStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        queue = status.queue
        jobs = CounterMetricFamily(
            _PREFIX + "jobs", "Training jobs that were answered.", labels=["kind", "outcome"]
        )
        for name, count in queue.jobs.items():
            kind, _, outcome = name.partition(":")
            jobs.add_metric([kind, outcome], count)
        yield jobs
        yield _counter("trained_tokens", "Tokens of forward passes.", queue.tokens)
        yield _counter("sampled_tokens", "Tokens that were sampled.", status.sampled_tokens)
        yield _counter("heartbeats", "Heartbeats of sessions.", status.heartbeats)
        yield _counter("trainer_restarts", "Starts of the trainer after the first.", queue.restarts)
        waiting = sum(user.waiting for user in queue.users)
        yield _gauge("jobs_waiting", "Training jobs that wait.", waiting)
        in_flight = sum(user.in_flight for user in status.samples)
        yield _gauge("samples_in_flight", "Samples in the sampling engine.", in_flight)
        samples = sum(user.waiting for user in status.samples)
        yield _gauge("samples_waiting", "Samples that wait for their turn.", samples)
        yield _gauge("futures_waiting", "Accepted requests without an answer.", status.futures)
        yield _gauge("polls", "Clients that wait for an answer now.", status.polls)
        yield _gauge("sessions", "Sessions that are alive.", status.sessions)
        resident = sum(model.resident for model in queue.models)
        yield _gauge("adapters_resident", "Adapters in the trainer's memory.", resident)
        figures = [model.kl for model in queue.models if model.kl is not None]
        v1 = max((abs(figure.v1) for figure in figures), default=0.0)
        yield _gauge("kl_sample_train_v1", "The largest |v1| of a model's last RL step.", v1)
        v2 = max((figure.v2 for figure in figures), default=0.0)
        yield _gauge("kl_sample_train_v2", "The largest v2 of a model's last RL step.", v2)
        warned = len(queue.warnings)
        yield _gauge("kl_warnings", "Models whose figures are above the threshold.", warned)
        yield _gauge("draining", "Whether new work is refused.", status.draining)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, text, value=value)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, text, value=value)
