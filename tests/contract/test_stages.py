"""What every stage must do: one suite for the three real services."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Poison, Retryable
from seawall.relay.stage import Stage, StageReply
from seawall.runtime.rpc_client import StageClient
from seawall.runtime.settings import RpcClientSettings
from tests.contract.conftest import STOP_SECONDS, Case, Service, running
from tests.support.stages import sent

#: Installs the models the first time on a machine.
pytestmark = pytest.mark.timeout(600)

OK = signal_pb2.ITEM_STATUS_OK
PATIENCE_SECONDS = 60.0


@asynccontextmanager
async def calling(stage: Stage, service: Service) -> AsyncIterator[StageClient[Any, Any]]:
    settings = RpcClientSettings(target=service.target, timeout_seconds=PATIENCE_SECONDS)
    client = StageClient[Any, Any](settings, stage.method, stage.request_type, stage.response_type)
    try:
        yield client
    finally:
        await client.close()


def request_of(stage: Stage, messages: Iterable[Message], ids: Iterable[int] | None = None) -> Any:
    """A request of the messages, numbered from 7 on if ``ids`` does not say otherwise."""
    request = stage.request_type()
    for message, number in zip(messages, ids or itertools.count(7), strict=False):
        added = request.items.add()
        added.CopyFrom(message)
        added.id = number
    return request


async def ask(stage: Stage, service: Service, messages: Sequence[Message], ids: Sequence[int] | None = None) -> Any:
    async with calling(stage, service) as client:
        return await client.call(request_of(stage, messages, ids), PATIENCE_SECONDS)


def results(reply: StageReply) -> list[signal_pb2.ItemResult]:
    """By ascending id."""
    return [one.result for one in sorted(reply.replies, key=lambda one: one.id)]


def measured(case: Case) -> list[tuple[str, Message, int]]:
    """Every item of every example: a name, the request's item, the status it is promised."""
    return [
        (f"{example.name}: {item.item_id}", message, example.statuses[item.item_id])
        for example in case.examples
        for item, message in zip(
            case.stage.items(example.generation), sent(case.stage, example.generation), strict=True
        )
    ]


def good(case: Case) -> Message:
    return next(message for _, message, status in measured(case) if status == OK)


# --- the contract with the relay --------------------------------------------------------------------------------------


def test_names_and_types_are_those_of_the_descriptor(case: Case) -> None:
    stage = case.stage
    assert stage.request_type.DESCRIPTOR.file.package == f"seawall.api.{stage.name}.v1"
    (service,) = stage.request_type.DESCRIPTOR.file.services_by_name.values()
    (method,) = service.methods
    assert stage.method == f"/{service.full_name}/{method.name}"
    assert method.input_type is stage.request_type.DESCRIPTOR
    assert method.output_type is stage.response_type.DESCRIPTOR
    (items,) = method.input_type.fields
    assert items.name == "items" and items.is_repeated
    assert items.message_type.fields_by_name["id"].type == FieldDescriptor.TYPE_UINT64
    replies = method.output_type.fields_by_name
    assert replies["replies"].message_type is signal_pb2.ItemReply.DESCRIPTOR
    assert replies["artefacts"].message_type is signal_pb2.Artefact.DESCRIPTOR
    assert {"service_instance", "inference_start_unix_nano", "inference_end_unix_nano"} <= set(replies)


def test_items_are_those_of_the_examples_and_numbered_as_asked(case: Case) -> None:
    for example in case.examples:
        items = case.stage.items(example.generation)
        assert [item.item_id for item in items] == list(example.statuses), example.name
        messages = [one for first in (0, len(items)) for one in sent(case.stage, example.generation, first)]
        assert [message.id for message in messages] == list(range(2 * len(items))), example.name
    promised = {status for example in case.examples for status in example.statuses.values()}
    assert promised >= {OK, signal_pb2.ITEM_STATUS_UNSCANNABLE, signal_pb2.ITEM_STATUS_ERROR}


def test_items_carry_their_id_and_nexus(case: Case) -> None:
    attempt, training = generation_pb2.NEXUS_ATTEMPT, generation_pb2.NEXUS_TRAINING_DATA
    uploaded, produced = generation_pb2.NEXUS_UPLOADED_INPUT, generation_pb2.NEXUS_MODEL_OUTPUT
    media = [("input/0", uploaded), ("output/0", produced), ("output/1", produced), ("data/0", training)]
    generation = generation_pb2.Generation(
        generation_id="g", attempt=1, prompt=case.home.sealer.seal("a lake", "g", "prompt")
    )
    for item_id, nexus in media:
        generation.media.add(item_id=item_id, nexus=nexus).content.uri = f"file:///{item_id}"
    of_text = case.stage.name == "prompt_scoring"
    found = [(item.item_id, item.nexus) for item in case.stage.items(generation)]
    assert found == ([("prompt", attempt)] if of_text else media)
    if of_text:
        generation.modality = generation_pb2.MODALITY_DATASET
        assert [item.nexus for item in case.stage.items(generation)] == [training]
    else:
        assert [message.content.uri for message in sent(case.stage, generation)] == [
            f"file:///{item_id}" for item_id, _ in media
        ]


def test_a_generation_with_nothing_for_the_stage_has_no_items(case: Case) -> None:
    text = generation_pb2.Generation(generation_id="g", attempt=1, modality=generation_pb2.MODALITY_TEXT)
    text.prompt.CopyFrom(case.home.sealer.seal("a lake", "g", "prompt"))
    picture = generation_pb2.Generation(generation_id="g", attempt=1, modality=generation_pb2.MODALITY_IMAGE)
    picture.media.add(item_id="output/0", nexus=generation_pb2.NEXUS_MODEL_OUTPUT)
    assert not case.stage.items(picture if case.stage.name == "prompt_scoring" else text)
    assert not case.stage.items(generation_pb2.Generation(generation_id="g", attempt=1))


# --- the service's answers --------------------------------------------------------------------------------------------


async def test_the_examples_get_their_statuses(case: Case, service: Service) -> None:
    names, messages, statuses = zip(*measured(case), strict=True)
    found = results(await ask(case.stage, service, messages))
    assert dict(zip(names, [one.status for one in found], strict=True)) == dict(zip(names, statuses, strict=True))
    for name, one in zip(names, found, strict=True):
        assert bool(one.reason) == (one.status != OK), name
        assert bool(one.labels) or one.status != OK, name
        assert all(math.isfinite(label.score) and 0.0 <= label.score <= 1.0 for label in one.labels), name
        assert len({label.label for label in one.labels}) == len(one.labels), name
        # The relay's to fill in.
        assert not one.item_id and not one.nexus, name


async def test_n_in_n_out_matched_by_id(case: Case, service: Service) -> None:
    _, messages, statuses = zip(*measured(case), strict=True)
    ids = [(1 << 64) - 1, 0, *(1000 - 3 * number for number in range(len(messages)))][: len(messages)]
    reply = await ask(case.stage, service, messages, ids)
    assert len(reply.replies) == len(messages)
    assert {one.id: one.result.status for one in reply.replies} == dict(zip(ids, statuses, strict=True))
    assert all(one.work_nanos > 0 for one in reply.replies)
    assert reply.service_instance
    assert 0 < reply.inference_start_unix_nano <= reply.inference_end_unix_nano


async def test_artefacts_are_named_by_digest(case: Case, service: Service) -> None:
    first, second = [await ask(case.stage, service, [good(case)]) for _ in range(2)]
    assert first.artefacts
    for artefact in first.artefacts:
        assert len(artefact.sha256) == 32 and any(artefact.sha256)
        assert artefact.name and artefact.version
        assert artefact.kind != signal_pb2.ARTEFACT_KIND_UNSPECIFIED
    assert len({(artefact.kind, artefact.name) for artefact in first.artefacts}) == len(first.artefacts)
    assert list(first.artefacts) == list(second.artefacts)


async def test_the_same_item_twice_gives_the_same_result(case: Case, service: Service) -> None:
    for name, message, _ in measured(case):
        one, two = results(await ask(case.stage, service, [message, message]))
        (later,) = results(await ask(case.stage, service, [message]))
        assert one == two == later, name


async def test_a_result_does_not_depend_on_its_neighbours(case: Case, service: Service) -> None:
    messages = [message for _, message, _ in measured(case)]
    nothing = type(messages[0])()
    # Good ones between malformed ones, in two orders, each of them more than once.
    batch = [*messages, nothing, *reversed(messages), nothing]
    alone = [results(await ask(case.stage, service, [message]))[0] for message in batch]
    assert results(await ask(case.stage, service, batch)) == alone
    assert alone[len(messages)].status != OK and alone[len(messages)].reason


@pytest.mark.parametrize("fault", ["duplicate ids", "no items"])
async def test_a_request_that_makes_no_sense_is_poison(case: Case, service: Service, fault: str) -> None:
    messages = [good(case)] * 2 if fault == "duplicate ids" else []
    with pytest.raises(Poison) as caught:
        await ask(case.stage, service, messages, [5, 5])
    assert caught.value.reason == "INVALID_ARGUMENT"
    assert [one.status for one in results(await ask(case.stage, service, [good(case)]))] == [OK]


# --- the process ------------------------------------------------------------------------------------------------------


async def test_it_is_healthy_and_reflection_lists_it(case: Case, service: Service) -> None:
    name = case.stage.method[1:].rpartition("/")[0]
    async with grpc.aio.insecure_channel(service.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for asked in ("", name):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=asked), timeout=PATIENCE_SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        listed = [
            one.name
            async for reply in reflection.ServerReflectionInfo(iter([question]), timeout=PATIENCE_SECONDS)
            for one in reply.list_services_response.service
        ]
    assert name in listed


async def test_sigterm_answers_what_is_in_flight_and_no_content_was_logged(case: Case) -> None:
    stage = case.stage
    laborious = [message for generation in case.laborious for message in sent(stage, generation)]
    # One batch at a time: that a second one is refused proves that the first is being worked on.
    # And that it has time to end, whatever else the machine does.
    settings = {
        "SEAWALL_RPC_SERVER__MAX_CONCURRENT_RPCS": "1",
        "SEAWALL_RPC_SERVER__DRAIN_SECONDS": f"{STOP_SECONDS - 5}",
    }
    with running(case, **settings) as service:
        async with calling(stage, service) as client:
            known = await client.call(request_of(stage, [one for _, one, _ in measured(case)]), PATIENCE_SECONDS)
            assert len(known.replies) == len(measured(case))
            with pytest.raises(Poison):
                await client.call(request_of(stage, []), PATIENCE_SECONDS)
            request = request_of(stage, laborious)
            calls = {asyncio.create_task(client.call(request, PATIENCE_SECONDS)) for _ in range(2)}
            (refused,), (in_flight,) = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            service.process.send_signal(signal.SIGTERM)
            refusal = refused.exception()
            assert isinstance(refusal, Retryable) and refusal.reason == "RESOURCE_EXHAUSTED"
            answered = results(await in_flight)
        assert [one.status for one in answered] == [OK] * len(laborious)
        assert await asyncio.to_thread(service.process.wait, STOP_SECONDS) == 0
        log = service.stderr.read_bytes()
    lines = [json.loads(line) for line in log.splitlines()]
    events = [line["event"] for line in lines]
    # The log tells of the drain, of failed items and of the refused batch: there was occasion to quote them.
    assert {"serving", "item failed", "batch refused", "draining", "stopped"} <= set(events)
    assert next(line for line in lines if line["event"] == "draining")["batches"] == 1
    assert case.secrets
    assert not [secret for secret in case.secrets if secret in log]
