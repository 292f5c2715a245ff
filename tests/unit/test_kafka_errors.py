"""What a Kafka client's failure to start is taken for: retried for ever, or told to a person."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import pytest
from aiokafka import errors as kafka_errors
from pydantic import SecretStr

from seawall.core.errors import Fatal, Retryable
from seawall.runtime.broker import Admin, Broker, Consumer, Producer
from seawall.runtime.kafka import KafkaBroker, connection
from seawall.runtime.settings import KafkaSettings

# Port 9 (discard) answers nobody on a machine that is not from 1990.
AWAY = KafkaSettings(bootstrap_servers="127.0.0.1:9", request_timeout_ms=1_000)


@pytest.mark.parametrize(
    "make",
    [
        lambda broker: broker.producer(),
        lambda broker: broker.admin(),
        lambda broker: broker.consumer("group", ["topic"]),
        lambda broker: broker.reader(["topic"]),
    ],
    ids=["producer", "admin", "consumer", "reader"],
)
async def test_a_broker_that_is_away_is_retryable_and_names_the_address(
    make: Callable[[Broker], Producer | Consumer | Admin],
) -> None:
    made = make(KafkaBroker(AWAY))
    with pytest.raises(Retryable, match=r"BROKER_UNAVAILABLE.*kafka\.bootstrap_servers \(127\.0\.0\.1:9\)"):
        await made.start()
    await made.stop()


@pytest.mark.parametrize(
    "refusal",
    [
        kafka_errors.AuthenticationFailedError(),
        kafka_errors.SaslAuthenticationFailed(),
        kafka_errors.UnsupportedSaslMechanismError(),
        ssl.SSLCertVerificationError(),
    ],
    ids=lambda refusal: type(refusal).__name__,
)
async def test_refused_credentials_are_fatal(refusal: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_args: object, **_options: object) -> None:
        raise refusal

    monkeypatch.setattr(connection, "create_conn", refuse)
    monkeypatch.setattr("aiokafka.client.create_conn", refuse)
    settings = KafkaSettings(
        bootstrap_servers="127.0.0.1:9",
        security_protocol="SASL_PLAINTEXT",
        sasl_username="seawall",
        sasl_password=SecretStr("a secret"),
    )
    with pytest.raises(Fatal, match="BROKER_REFUSED_ACCESS") as raised:
        await KafkaBroker(settings).producer().start()
    assert "a secret" not in str(raised.value)
    assert type(refusal).__name__ in raised.value.detail


@pytest.mark.parametrize("servers", ["nowhere", "host:port", "host:"])
async def test_unreadable_addresses_are_fatal(servers: str) -> None:
    with pytest.raises(Fatal, match="BAD_BOOTSTRAP_SERVERS"):
        await KafkaBroker(KafkaSettings(bootstrap_servers=servers)).admin().start()


async def test_tls_files_that_cannot_be_read_are_fatal(tmp_path: object) -> None:
    settings = KafkaSettings(security_protocol="SSL", ssl_cafile=f"{tmp_path}/absent.pem")  # type: ignore[arg-type]
    with pytest.raises(Fatal, match=r"KAFKA_TLS_FILES.*ssl_cafile"):
        await KafkaBroker(settings).producer().start()
