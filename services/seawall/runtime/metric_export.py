"""Where metrics go: pushed to an OTLP collector, scraped from the room's own endpoint, both, or nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import metrics as otel_metrics
from opentelemetry.sdk.resources import Resource

from seawall.core.errors import Fatal
from seawall.runtime.settings import TelemetrySettings

# Imported where they are used: they take a tenth of a room's start, and a command needs none.
if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader

    from seawall.runtime.prometheus import PrometheusReader
    from seawall.runtime.status_server import StatusServer


class _Installed:
    """The process's one provider: instruments are bound to the first for good."""

    prometheus: PrometheusReader | None = None


def install(settings: TelemetrySettings, resource: Resource) -> StatusServer | None:
    """Collect metrics if anybody wants them. Returns the room's endpoint, listening, if it is to have one.

    Raises Fatal("BAD_SETTINGS").
    """
    if settings.otlp_endpoint is None and settings.http_listen is None:
        return None
    from opentelemetry.sdk.metrics import MeterProvider

    if not isinstance(otel_metrics.get_meter_provider(), MeterProvider):
        readers: list[MetricReader] = []
        if settings.otlp_endpoint:
            readers.append(_otlp(settings))
        if settings.http_listen:
            from seawall.runtime.prometheus import PrometheusReader

            _Installed.prometheus = PrometheusReader()
            readers.append(_Installed.prometheus)
        otel_metrics.set_meter_provider(MeterProvider(readers, resource=resource, shutdown_on_exit=False))
    if settings.http_listen is None or _Installed.prometheus is None:
        return None
    from seawall.runtime.status_server import StatusServer

    return StatusServer(settings.http_listen, settings.http_port_file, _Installed.prometheus.registry)


def _otlp(settings: TelemetrySettings) -> MetricReader:
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    try:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    except ImportError:
        raise extra_missing() from None
    return PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=settings.otlp_endpoint, timeout=settings.export_timeout_seconds),
        export_interval_millis=settings.metrics_interval_seconds * 1000,
        export_timeout_millis=settings.export_timeout_seconds * 1000,
    )


def extra_missing() -> Fatal:
    """The error about an endpoint without the extra that speaks to it."""
    return Fatal("BAD_SETTINGS", "telemetry.otlp_endpoint needs the extra `otlp`: pip install 'seawall[otlp]'")
