"""What every aiokafka client is given to connect with, and what its errors mean to us."""

from __future__ import annotations

import ssl
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.conn import create_conn
from aiokafka.helpers import create_ssl_context

from seawall.core.errors import Fatal, Retryable, SeawallError
from seawall.runtime.settings import KafkaSettings

#: What a client call may raise when the broker is the reason. asyncio's TimeoutError is an OSError.
BROKER_ERRORS = (kafka_errors.KafkaError, OSError)

_ACCESS_ERRORS = (
    kafka_errors.AuthenticationFailedError,
    kafka_errors.AuthenticationMethodNotSupported,
    kafka_errors.SaslAuthenticationFailed,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.IllegalSaslStateError,
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.TransactionalIdAuthorizationFailed,
    ssl.SSLCertVerificationError,
)
_SETTING_ERRORS = (
    kafka_errors.InconsistentGroupProtocolError,
    kafka_errors.InvalidSessionTimeoutError,
    kafka_errors.InvalidGroupIdError,
    kafka_errors.InvalidTopicError,
    kafka_errors.KafkaConfigurationError,
    kafka_errors.UnsupportedVersionError,
    kafka_errors.IncompatibleBrokerVersion,
    kafka_errors.UnsupportedCodecError,
)


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Arguments that consumer, producer and admin client share."""
    password = settings.sasl_password
    addresses = _addresses(settings)
    return {
        "bootstrap_servers": [f"{host}:{port}" if ":" not in host else f"[{host}]:{port}" for host, port in addresses],
        "client_id": settings.client_id,
        "request_timeout_ms": settings.request_timeout_ms,
        "retry_backoff_ms": settings.retry_backoff_ms,
        "metadata_max_age_ms": settings.metadata_max_age_ms,
        "security_protocol": settings.security_protocol,
        "ssl_context": _ssl_context(settings),
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": None if password is None else password.get_secret_value(),
    }


def _addresses(settings: KafkaSettings) -> list[tuple[str, int]]:
    addresses = []
    for address in settings.bootstrap_servers.split(","):
        host, _, port = address.strip().rpartition(":")
        if not host or not port.isdecimal():
            raise Fatal(
                "BAD_BOOTSTRAP_SERVERS", 'kafka.bootstrap_servers: write "host:port", several separated by commas'
            )
        addresses.append((host.strip("[]"), int(port)))
    return addresses


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext | None:
    if "SSL" not in settings.security_protocol:
        return None
    key_password = settings.ssl_key_password
    try:
        context: ssl.SSLContext = create_ssl_context(
            cafile=settings.ssl_cafile and str(settings.ssl_cafile),
            certfile=settings.ssl_certfile and str(settings.ssl_certfile),
            keyfile=settings.ssl_keyfile and str(settings.ssl_keyfile),
            password=None if key_password is None else key_password.get_secret_value(),
        )
    except OSError as error:
        raise Fatal(
            "KAFKA_TLS_FILES",
            f"kafka.ssl_cafile, ssl_certfile or ssl_keyfile cannot be used ({type(error).__name__}): "
            "name readable PEM files, and ssl_key_password if the key has one",
        ) from error
    return context


def meaning(error: BaseException, doing: str) -> SeawallError:
    """The error of ours that a client's error amounts to. ``doing`` says what was tried: "commit offsets"."""
    name = type(error).__name__
    if isinstance(error, SeawallError):
        return error
    if isinstance(error, _ACCESS_ERRORS):
        return Fatal(
            "BROKER_REFUSED_ACCESS",
            f"could not {doing}: Kafka refused with {name}: mend kafka.security_protocol, the SASL and TLS settings, "
            "or the rights of this user",
        )
    if isinstance(error, _SETTING_ERRORS):
        return Fatal(
            "BROKER_REFUSED_SETTINGS", f"could not {doing}: Kafka refused with {name}: mend the kafka settings"
        )
    if isinstance(error, kafka_errors.UnknownTopicOrPartitionError):
        return Retryable("TOPIC_MISSING", f"could not {doing}: a topic is missing: run `seawall topics apply`")
    return Retryable(
        "BROKER_UNAVAILABLE",
        f"could not {doing}: {name}: see whether Kafka is up and kafka.bootstrap_servers names it",
    )


async def start_failure(settings: KafkaSettings, error: BaseException, doing: str) -> SeawallError:
    """As ``meaning``, for a client that did not start.

    aiokafka's bootstrap reports every cause as a failed connection; so that wrong credentials are not retried for ever,
    one connection is tried again for its own error.
    """
    cause = await _cause(settings, error) if isinstance(error, kafka_errors.KafkaConnectionError) else error
    ours = meaning(cause, doing)
    if ours.reason != "BROKER_UNAVAILABLE":
        return ours
    return Retryable(
        ours.reason,
        f"could not {doing}: {type(cause).__name__}: see whether Kafka is up, and whether kafka.bootstrap_servers "
        f"({settings.bootstrap_servers}) names it",
    )


async def _cause(settings: KafkaSettings, error: BaseException) -> BaseException:
    """What a connection fails with: the first refusal of access, else the last failure, else ``error``."""
    options = client_options(settings)
    del options["bootstrap_servers"], options["metadata_max_age_ms"], options["retry_backoff_ms"]
    cause: BaseException = error
    for host, port in _addresses(settings):
        try:
            connection = await create_conn(host, port, **options)
        except BROKER_ERRORS as own:
            cause = own
        else:
            connection.close()
            return error
        if isinstance(cause, _ACCESS_ERRORS):
            break
    return cause
