"""What the mesh sends to a collector, over real OTLP: a blocked generation's tree, nothing beyond the catalogue."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.metrics.v1 import metrics_pb2
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from seawall.local import photographs
from seawall.local.demo import Summary
from seawall.local.mesh import ROOMS, status_file
from seawall.runtime.metrics import ATTRIBUTES, METRICS, SPANS
from tests.e2e.conftest import UpMesh
from tests.support.otlp import Received, Span, attributes_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

STAGES = ("classification", "perceptual_hashing", "prompt_scoring")
#: The broker stamps records in milliseconds.
MILLI = 1_000_000


@pytest.fixture(scope="module")
def blocked(mesh: UpMesh) -> dict[str, Any]:
    """What `why` says of a blocked generation whose prompt and picture all three stages measured."""
    picture = mesh.home / "telemetry.png"
    picture.write_bytes(photographs.original("camera"))
    sent = mesh.seawall("submit", "--prompt", "explicit image of a minor", "--image", str(picture))
    assert sent.returncode == 11, sent.stderr
    generation_id = sent.stdout.split("seawall why ")[1].split()[0]
    document: dict[str, Any] = mesh.seawall_json("why", generation_id)
    return document


@pytest.fixture(scope="module")
def tree(blocked: dict[str, Any], received: Received) -> dict[str, Span]:
    """The spans of its trace by name."""
    trace_id = blocked["decisions"][0]["traceparent"][3:35]
    expected = 2 + 5 * len(STAGES)
    received.until(lambda: len(received.spans[trace_id]) >= expected, f"{expected} spans of {trace_id}")
    spans = received.spans[trace_id]
    assert len(spans) == expected, [span.name for span in spans]
    return {span.name: span for span in spans}


def children(tree: dict[str, Span], parent: Span) -> Iterator[str]:
    return (name for name, span in sorted(tree.items()) if span.parent_id == parent.span_id)


def test_the_tree_of_a_blocked_generation_arrives_whole(blocked: dict[str, Any], tree: dict[str, Span]) -> None:
    (decision,) = blocked["decisions"]
    root = tree["decide decisions.v1"]
    assert (root.service, root.kind, root.failed) == ("aggregator", "CONSUMER", False)
    assert f"00-{root.trace_id}-{root.parent_id}" == decision["traceparent"][:52], "below the platform's own span"
    assert list(children(tree, root)) == ["join decisions.v1", *(f"measure {stage}" for stage in STAGES)]
    for stage in STAGES:
        measured = tree[f"measure {stage}"]
        assert list(children(tree, measured)) == [f"batch {stage}", f"call {stage}", f"queue {stage}"]
        assert list(children(tree, tree[f"call {stage}"])) == [f"infer {stage}"]
    assert root.attributes["moderation.generation.id"] == blocked["generation_id"]
    assert root.attributes["moderation.decision.id"] == decision["decision_id"]
    assert root.attributes["moderation.outcome"] == "OUTCOME_BLOCK"
    assert root.attributes["moderation.rule"] == "attempt-in-prompt"
    record = decision["generation_record"]
    assert root.attributes["messaging.kafka.offset"] == int(record.get("offset", 0))
    assert root.attributes["messaging.destination.partition.id"] == str(record.get("partition", 0))


def test_its_times_are_those_of_the_decision(blocked: dict[str, Any], tree: dict[str, Span]) -> None:
    (decision,) = blocked["decisions"]
    root = tree["decide decisions.v1"]
    assert (root.start, root.end) == (
        int(decision["generation_log_unix_nano"]),
        int(decision["decided_unix_nano"]),
    )
    logged = []
    for joined in decision["signals"]:
        stage, times = joined["signal"]["stage"], {k: int(v) for k, v in joined["signal"]["timings"].items()}
        logged.append(int(joined["log_unix_nano"]))
        assert tree[f"queue {stage}"].end == times["received_unix_nano"]
        assert (tree[f"batch {stage}"].start, tree[f"batch {stage}"].end) == (
            times["received_unix_nano"],
            times["sent_unix_nano"],
        )
        assert (tree[f"call {stage}"].start, tree[f"call {stage}"].end) == (
            times["sent_unix_nano"],
            times["produced_unix_nano"],
        )
        assert (tree[f"infer {stage}"].start, tree[f"infer {stage}"].end) == (
            times["inference_start_unix_nano"],
            times["inference_end_unix_nano"],
        )
    assert tree["join decisions.v1"].start == max(logged)
    by_id = {span.span_id: span for span in tree.values()}
    for span in tree.values():
        assert span.start <= span.end, span.name
        parent = by_id.get(span.parent_id)
        if parent is not None:
            assert parent.start - MILLI <= span.start, f"{span.name} began before {parent.name}"
            # The broker's milliseconds against the rooms' nanoseconds.
            assert span.end <= parent.end + MILLI, f"{span.name} ended after {parent.name}"


def test_each_stages_batch_links_to_the_generation_and_holds_the_service(
    blocked: dict[str, Any], received: Received
) -> None:
    traceparent = blocked["decisions"][0]["traceparent"]
    ours = (traceparent[3:35], traceparent[36:52])

    def batches() -> dict[str, Span]:
        return {
            span.service.removesuffix(".relay"): span
            for spans in received.spans.values()
            for span in spans
            if span.name == "process generations.v1" and ours in span.links
        }

    received.until(lambda: set(batches()) == set(STAGES), "the batch spans of three relays")
    for stage, batch in batches().items():
        assert (batch.kind, batch.parent_id) == ("CONSUMER", ""), "a trace of its own"
        assert batch.attributes["messaging.consumer.group.name"] == stage

        def server(batch: Span = batch) -> list[Span]:
            return [span for span in received.spans[batch.trace_id] if span.parent_id == batch.span_id]

        (served,) = received.until(server, f"the service's span below {stage}'s batch")
        assert (served.service, served.kind) == (stage, "SERVER")
        assert served.name == served.attributes["rpc.method"]
        assert served.attributes["rpc.status_code"] == "OK"
        assert batch.start <= served.start <= served.end <= batch.end


def test_the_latency_leads_to_the_trace(mesh: UpMesh, blocked: dict[str, Any], tree: dict[str, Span]) -> None:
    address = status_file(mesh.home, "aggregator").read_text().strip()
    request = urllib.request.Request(
        f"http://{address}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - a room's own endpoint
        families = list(text_string_to_metric_families(response.read().decode()))  # type: ignore[no-untyped-call]
    exemplars = {
        (sample.exemplar.labels["trace_id"], sample.exemplar.labels["span_id"])
        for family in families
        if family.name == "moderation_decision_duration_seconds"
        for sample in family.samples
        if sample.exemplar is not None
    }
    root = tree["decide decisions.v1"]
    assert (root.trace_id, root.span_id) in exemplars


# ---- the catalogue ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything(samples_run: Summary, blocked: dict[str, Any], received: Received) -> Received:
    """After the sample stream: metrics of every room, and what their spans were."""
    received.until(lambda: {room for room, _ in received.metrics} >= set(ROOMS), "metrics of every room")
    return received


def test_every_metric_is_in_the_catalogue(everything: Received) -> None:
    kinds = {"sum": {"counter", "level"}, "gauge": {"gauge"}, "histogram": {"histogram"}}
    for (room, name), metric in everything.metrics.items():
        assert name in METRICS, f"{room} emits {name}, which the catalogue does not know"
        known, data = METRICS[name], metric.WhichOneof("data") or ""
        assert (metric.unit, metric.description) == (known.unit, known.meaning), name
        assert known.kind in kinds[data], f"{name} is a {data}"


def test_every_attribute_is_in_the_catalogue(everything: Received) -> None:
    named = {name for span in everything.every_span() for name in span.attributes}
    for metric in everything.metrics.values():
        data: Any = getattr(metric, metric.WhichOneof("data") or "")
        named |= {name for point in data.data_points for name in attributes_of(point.attributes)}
    assert named - set(ATTRIBUTES) == set()


def test_every_span_has_a_name_and_kind_of_the_catalogue(everything: Received) -> None:
    known = [
        (re.compile(re.escape(one.name).replace("<topic>", r"[\w.]+\.v\d+").replace("<stage>", r"\w+")), one.kind)
        for one in SPANS
        if one.kind != "SERVER"
    ]
    known.append((re.compile(r"seawall\.api\.\w+\.v\d+\.\w+/\w+"), "SERVER"))
    for span in everything.every_span():
        assert any(span.kind == kind and name.fullmatch(span.name) for name, kind in known), (span.name, span.kind)


def test_values_follow_the_conventions(everything: Received) -> None:
    for span in everything.every_span():
        attributes = span.attributes
        if "messaging.system" in attributes:
            assert attributes["messaging.system"] == "kafka"
            assert attributes["messaging.operation.type"] in {"send", "receive", "process"}
        if "rpc.method" in attributes:
            assert attributes["rpc.system.name"] == "grpc"
            assert re.fullmatch(r"seawall\.api(\.\w+)+/\w+", attributes["rpc.method"])
            assert re.fullmatch(r"[A-Z_]+", attributes["rpc.status_code"]), "by name, not by number"
        if "messaging.kafka.offset" in attributes:
            assert isinstance(attributes["messaging.kafka.offset"], int)
        assert span.failed == ("error.type" in attributes)
    for (_, name), metric in everything.metrics.items():
        if name.endswith(".duration"):
            assert metric.unit == "s"
            assert metric.histogram.aggregation_temporality == metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
