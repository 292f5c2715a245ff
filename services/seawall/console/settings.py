"""Settings of the console."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from seawall.ledger.settings import DatabaseSettings
from seawall.runtime.settings import Group, KafkaSettings, RoomSettings, Seconds

Url = Annotated[str, Field(pattern=r"^https?://[^\s\"'<>]{1,500}$")]


class OidcSettings(Group):
    """The OpenID provider that says who somebody is."""

    # Where it describes itself: "https://id.example.org/.well-known/openid-configuration".
    metadata_url: Url
    client_id: str = Field(min_length=1)
    client_secret: SecretStr
    scope: str = "openid profile email"
    # The claim that names a person's groups or roles, and which of our roles each of its values gives.
    roles_claim: str = "groups"
    roles: dict[str, Literal["viewer", "on-call", "reviewer", "admin"]] = Field(default_factory=dict)
    # The claim that names a person's tenant. Unset: everybody sees every tenant. Set: whoever lacks it sees nothing,
    # and the value that is `all_tenants` sees every one.
    tenant_claim: str | None = None
    all_tenants: str = "*"


class HttpSettings(Group):
    """Where it listens, and how browsers reach it."""

    host: str = Field(default="127.0.0.1", min_length=1)
    # 0: the system chooses.
    port: int = Field(default=8600, ge=0, le=65535)
    # As browsers see it: "https://seawall.example.org". Unset: http, this host and port.
    public_url: Url | None = None
    # Host names that a request may carry, beside those of public_url and this machine. "*.example.org" for any below.
    allowed_hosts: list[str] = Field(default_factory=list)

    @field_validator("allowed_hosts")
    @classmethod
    def _no_wildcard(cls, hosts: list[str]) -> list[str]:
        if "*" in hosts:
            raise ValueError('"*" would let any site that points its name here be answered: name the hosts')
        return hosts

    @property
    def is_https(self) -> bool:
        """Whether browsers reach it by TLS, so that cookies may be kept to that."""
        return (self.public_url or "").startswith("https://")


class SessionSettings(Group):
    """How long somebody stays signed in."""

    # Signs the session's cookie; at least 32 characters. Unset: made at start, so that a restart signs everybody out;
    # several replicas need the same one.
    key: SecretStr | None = Field(default=None, min_length=32)
    # Signed out after so long without a request, and after so long in any case.
    idle_seconds: Seconds = 30 * 60.0
    longest_seconds: Seconds = 12 * 3600.0


class LimitSettings(Group):
    """When the page *Now* calls something wrong."""

    # The ledger, or a room, is behind by so many seconds.
    lag_seconds: Seconds = 60.0
    # Of the decisions of the last five minutes, the latency that 99 % stay below.
    p99_seconds: Seconds = 10.0
    # Share of the last hour's decisions that were held.
    hold_share: float = Field(default=0.05, ge=0, le=1)
    # Dead letters of the last hour.
    dead_letters: int = Field(default=0, ge=0)
    # A list that has not changed for so long misses what is new.
    list_age_days: float = Field(default=14.0, gt=0)
    # Nothing was decided for so long, though the hour before had decisions.
    silence_seconds: Seconds = 300.0


class LinkSettings(Group):
    """Where the pages lead to outside. {trace_id} and {generation_id} are filled in; unset: no link."""

    trace: Url | None = None
    log: Url | None = None


class ConsoleSettings(RoomSettings):
    """The console: the ledger's database and Kafka on one side, browsers on the other."""

    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    # The ledger's, with a limit on what one question may take.
    database: DatabaseSettings = Field(default_factory=lambda: DatabaseSettings(timeout_seconds=5.0))
    http: HttpSettings = Field(default_factory=HttpSettings)
    # Unset: a one-time token, printed at start, signs in as admin. For one machine and one person.
    oidc: OidcSettings | None = None
    session: SessionSettings = Field(default_factory=SessionSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    links: LinkSettings = Field(default_factory=LinkSettings)
    # Where rooms answer (telemetry.http_listen), by room: ["host:port"], as for `seawall status`; a name of several
    # addresses is several instances. Beside them those of a mesh that runs on $SEAWALL_HOME.
    rooms: dict[str, list[str]] = Field(default_factory=dict)
    # How often they and Kafka are asked, and how long an answer may take.
    watch_seconds: Seconds = 5.0
    watch_timeout_seconds: Seconds = 2.0
    # How long a page waits for a decision's record in Kafka, and for a search through the topic without the ledger.
    record_seconds: Seconds = 2.0
    scan_seconds: Seconds = 20.0
    # Rows of one export, at most.
    export_rows: int = Field(default=50_000, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _reachable_needs_oidc(self) -> ConsoleSettings:
        if self.oidc is None and self.http.host not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError("http.host is open to the network: set oidc, or listen on 127.0.0.1")
        if self.oidc is not None and self.http.public_url is None:
            raise ValueError("oidc needs http.public_url: the provider sends people back there")
        return self
