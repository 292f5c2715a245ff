from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import Field

from seawall.core.errors import Fatal
from seawall.runtime.settings import (
    ContentSettings,
    KafkaSettings,
    RoomSettings,
    RpcClientSettings,
    RpcServerSettings,
    SealingSettings,
    load_settings,
    seawall_home,
)


class Room(RoomSettings):
    kafka: KafkaSettings = KafkaSettings()
    content: ContentSettings = Field(default_factory=ContentSettings)
    rpc_server: RpcServerSettings = RpcServerSettings(port=50051)
    banks: list[str] = Field(default_factory=list)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("SEAWALL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SEAWALL_HOME", str(tmp_path))


def configure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "seawall.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setenv("SEAWALL_CONFIG", str(path))


def fault(room: str = "classification") -> str:
    with pytest.raises(Fatal) as caught:
        load_settings(Room, room)
    assert caught.value.reason == "BAD_SETTINGS"
    # What pydantic or YAML said may quote a value: it must not follow into a traceback.
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return caught.value.detail


def test_defaults_live_in_the_home_folder(tmp_path: Path) -> None:
    settings = load_settings(Room, "classification")
    assert seawall_home() == tmp_path
    assert settings.content.allowed_prefixes == [f"file://{tmp_path}/content/"]
    assert SealingSettings().keyset == tmp_path / "keys" / "sealing.json"
    assert settings.rpc_server.port == 50051
    assert settings.kafka.session_timeout_ms == 6000


def test_the_home_folder_has_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEAWALL_HOME")
    assert seawall_home() == Path.home() / ".seawall"


def test_the_rooms_section_wins_over_the_top_level_and_the_environment_over_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configure(
        monkeypatch,
        tmp_path,
        """
        kafka: {bootstrap_servers: "broker:9092", topic_prefix: "bulk.", linger_ms: 1}
        aggregator: {whatever: it is not ours}
        rpc_client: {target: "another room reads it:1"}
        classification:
          kafka: {linger_ms: 2, fetch_max_wait_ms: 20}
          banks: [a, b]
          rpc_server: {workers: 3}
        """,
    )
    monkeypatch.setenv("SEAWALL_KAFKA__FETCH_MAX_WAIT_MS", "30")
    monkeypatch.setenv("SEAWALL_CONTENT__ALLOWED_PREFIXES", json.dumps(["s3://bucket/"]))
    monkeypatch.setenv("SEAWALL_INSTANCE", "classification-0")
    settings = load_settings(Room, "classification")
    assert settings.kafka.bootstrap_servers == "broker:9092"
    assert settings.kafka.topic_prefix == "bulk."
    assert settings.kafka.linger_ms == 2
    assert settings.kafka.fetch_max_wait_ms == 30
    assert settings.content.allowed_prefixes == ["s3://bucket/"]
    assert settings.instance == "classification-0"
    assert settings.banks == ["a", "b"]
    # What the file does not say keeps the room's own default.
    assert (settings.rpc_server.workers, settings.rpc_server.port) == (3, 50051)
    assert load_settings(Room, "gate").kafka.linger_ms == 1


def test_an_empty_file_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configure(monkeypatch, tmp_path, "# nothing yet\n")
    assert load_settings(Room, "classification").banks == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kafca: {}", "unknown key kafca"),
        ("kafka: {linger_mss: 5}", "kafka.linger_mss: there is no such setting"),
        ("classification: {kafka: {linger_mss: 5}}", "kafka.linger_mss"),
        ("classification: {bank: [a]}", "bank: there is no such setting"),
        ("classification: [a]", "classification must be a map"),
        ("kafka: {linger_ms: soon}", "kafka.linger_ms: Input should be a valid integer"),
        ("[a, b]", "a map of settings"),
        ("kafka: {linger_ms: 5", "not valid YAML at line 1"),
        (b"kafka: \xff", "not UTF-8"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | bytes, says: str
) -> None:
    configure(monkeypatch, tmp_path, text)
    assert says in fault()


def test_a_file_that_is_absent_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEAWALL_CONFIG", "/nowhere/seawall.yaml")
    assert "/nowhere/seawall.yaml" in fault()


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("SEAWALL_KAFKA__LINGER_MS", "-1", "kafka.linger_ms"),
        ("SEAWALL_KAFKA__NO_SUCH", "1", "kafka.no_such: there is no such setting"),
        ("SEAWALL_KAFKA__HEARTBEAT_INTERVAL_MS", "5000", "at most a third"),
        ("SEAWALL_KAFKA__SECURITY_PROTOCOL", "SASL_SSL", "needs sasl_username"),
        ("SEAWALL_KAFKA__TOPIC_PREFIX", "a b", "kafka.topic_prefix"),
        ("SEAWALL_CONTENT__ALLOWED_PREFIXES", "s3://bucket/", "JSON"),
        ("SEAWALL_CONTENT__ALLOWED_PREFIXES", '["https://host/"]', "never fetched"),
        ("SEAWALL_CONTENT__WRITE_PREFIX", "s3://elsewhere/", "write_prefix"),
        ("SEAWALL_RPC_SERVER__PORT", "70000", "rpc_server.port"),
        ("SEAWALL_RPC_SERVER__TLS_KEY", "/key.pem", "tls_certificate and tls_key"),
        ("SEAWALL_RPC_SERVER__DRAIN_SECONDS", "inf", "rpc_server.drain_seconds"),
        ("SEAWALL_INSTANCE", "a b", "instance"),
    ],
)
def test_a_variable_that_is_wrong_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert says in fault()


def test_a_missing_setting_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    class Needs(RoomSettings):
        policy: Path

    with pytest.raises(Fatal, match="SEAWALL_POLICY"):
        load_settings(Needs, "aggregator")


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEAWALL_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("SEAWALL_KAFKA__SASL_USERNAME", "relay")
    monkeypatch.setenv("SEAWALL_KAFKA__SASL_PASSWORD", "hush-hush")
    settings = load_settings(Room, "classification")
    assert settings.kafka.sasl_password is not None
    assert settings.kafka.sasl_password.get_secret_value() == "hush-hush"
    assert "hush-hush" not in repr(settings) + str(settings) + settings.model_dump_json()
    # A value in the wrong place is not repeated either.
    monkeypatch.setenv("SEAWALL_KAFKA__LINGER_MS", "hush-hush")
    monkeypatch.setenv("SEAWALL_KAFKA__COMPRESSION", "hush-hush")
    assert "hush-hush" not in fault()


def test_other_rooms_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEAWALL_RPC_CLIENT__TARGET", "for the relay:1")
    assert load_settings(Room, "classification").rpc_server.port == 50051


@pytest.mark.parametrize("wrong", [{"tls_certificate": "/c.pem"}, {"max_attempts": 6}, {"timeout_seconds": 0}])
def test_client_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RpcClientSettings.model_validate(wrong)
