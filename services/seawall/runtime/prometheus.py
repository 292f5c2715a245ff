"""Metrics for Prometheus: what the SDK collected, as families of prometheus_client, exemplars included.

OpenTelemetry's own exporter for Prometheus leaves exemplars out, and it is by them that a slow bucket leads to a trace
(ADR 35). Names are those of the Collector's exporter: dots become underscores, seconds and totals are said, units
in braces are not. Every sample names its room and instance, so that the same rules hold for scraped and pushed metrics.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from opentelemetry.sdk.metrics.export import (
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricReader,
    MetricsData,
    NumberDataPoint,
    Sum,
)
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from seawall.runtime import metrics

_ILLEGAL = re.compile(r"[^A-Za-z0-9_]")
#: Labels of every sample, from the resource.
_RESOURCE = ("service.name", "service.instance.id")
_UNITS = {"s": "seconds", "By": "bytes"}
_NANOS = 1e9
#: The newest exemplar by series and bucket. The SDK hands each over once, to whoever scrapes first.
_Exemplars = dict[tuple[str, ...], dict[int, Exemplar]]


def metric_name(name: str, kind: str, unit: str) -> str:
    """A metric's name in Prometheus: ``moderation.decision.duration`` in s is ``moderation_decision_duration_seconds``.

    Args:
        kind: counter, level, gauge or histogram. A counter's samples end in ``_total``, a histogram's in ``_bucket``,
            ``_count`` and ``_sum``.
    """
    written = _label(name)
    word = _UNITS.get(unit) or ("ratio" if unit == "1" and kind == "gauge" else "")
    if word and not written.endswith(f"_{word}"):
        written += f"_{word}"
    return f"{written}_total" if kind == "counter" else written


def scraped(name: str) -> str:
    """The name under which a metric of the catalogue is scraped."""
    metric = metrics.METRICS[name]
    return metric_name(metric.name, metric.kind, metric.unit)


class PrometheusReader(MetricReader):
    """A reader whose ``registry`` collects afresh each time it is scraped."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = CollectorRegistry()
        self.registry.register(_Families(self))
        self._lock = threading.Lock()
        self._received: list[MetricsData] = []
        self._exemplars: _Exemplars = {}

    def families(self) -> list[Family]:
        """What there is now."""
        # The SDK hands the data over by a call back into `_receive_metrics`; two scrapes must not take each other's.
        with self._lock:
            self._received.clear()
            self.collect()
            return [family for data in self._received for family in _families(data, self._exemplars)]

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        self._received.append(metrics_data)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        return None


class _Families(Collector):
    def __init__(self, reader: PrometheusReader) -> None:
        self._reader = reader

    def collect(self) -> Iterable[Family]:
        return self._reader.families()

    def describe(self) -> Iterable[Family]:
        # Asked when it is registered, before there is anything to collect from.
        return []


def _families(data: MetricsData, kept: _Exemplars) -> Iterator[Family]:
    for resource in data.resource_metrics:
        common = {key: str(resource.resource.attributes.get(key, "")) for key in _RESOURCE}
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                yield _family(metric, common, kept)


def _family(metric: Metric, common: dict[str, str], kept: _Exemplars) -> Family:
    points: Sequence[Any] = list(metric.data.data_points)
    names = sorted({str(key) for point in points for key in (*common, *(point.attributes or {}))})
    labels = [_label(name) for name in names]

    def values(point: NumberDataPoint | HistogramDataPoint) -> list[str]:
        found = {**common, **(point.attributes or {})}
        return [str(found.get(name, "")) for name in names]

    if isinstance(metric.data, Histogram):
        family = HistogramMetricFamily(_name(metric, "histogram"), metric.description or "", labels=labels)
        for point in points:
            series = values(point)
            exemplars = kept.setdefault((metric.name, *series), {})
            family.add_metric(series, buckets=_buckets(point, exemplars), sum_value=point.sum)
        return family
    if isinstance(metric.data, Sum) and metric.data.is_monotonic:
        counter = CounterMetricFamily(_name(metric, "counter"), metric.description or "", labels=labels)
        for point in points:
            counter.add_metric(values(point), point.value)
        return counter
    kind = "level" if isinstance(metric.data, Sum) else "gauge"
    gauge = GaugeMetricFamily(_name(metric, kind), metric.description or "", labels=labels)
    for point in points:
        gauge.add_metric(values(point), point.value)
    return gauge


def _name(metric: Metric, kind: str) -> str:
    # The client appends the counter's `_total` itself.
    return metric_name(metric.name, kind, metric.unit or "").removesuffix("_total")


def _buckets(point: HistogramDataPoint, exemplars: dict[int, Exemplar]) -> list[Any]:
    """Cumulative counts; the newest exemplar of each bucket beside it, also into ``exemplars``."""
    bounds = [*point.explicit_bounds, float("inf")]
    for one in sorted(point.exemplars, key=lambda one: one.time_unix_nano):
        if one.trace_id and one.span_id:
            bucket = next(index for index, bound in enumerate(bounds) if one.value <= bound)
            labels = {"trace_id": f"{one.trace_id:032x}", "span_id": f"{one.span_id:016x}"}
            exemplars[bucket] = Exemplar(labels, float(one.value), one.time_unix_nano / _NANOS)
    counts = itertools.accumulate(point.bucket_counts)
    written = ["+Inf" if bound == float("inf") else repr(float(bound)) for bound in bounds]
    return [
        (text, count, exemplars[index]) if index in exemplars else (text, count)
        for index, (text, count) in enumerate(zip(written, counts, strict=True))
    ]


def _label(name: str) -> str:
    return _ILLEGAL.sub("_", name)
