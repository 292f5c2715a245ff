"""Settings of the ledger."""

from __future__ import annotations

from pydantic import Field, SecretStr

from seawall.runtime.settings import Group, KafkaSettings, RoomSettings, Seconds, seawall_home


class DatabaseSettings(Group):
    """Where the rows are."""

    # An SQLAlchemy address: "sqlite:///<file>", or "postgresql+psycopg://user:password@host/name" (extra `postgresql`).
    # Unset: a file in the home folder.
    url: SecretStr | None = None
    # Longest wait for a lock, a connection or a statement.
    timeout_seconds: Seconds = 15.0

    @property
    def address(self) -> str:
        """The address to connect to, its password included: never to be logged."""
        return self.url.get_secret_value() if self.url else f"sqlite:///{seawall_home() / 'ledger' / 'ledger.db'}"


class LedgerSettings(RoomSettings):
    """The ledger: Kafka on one side, SQL on the other."""

    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    # Records of one transaction, at most.
    batch_records: int = Field(default=1_000, ge=1, le=20_000)
    # How long a poll waits for the first record.
    poll_seconds: Seconds = 0.5
    # Rows that are older are deleted.
    retention_days: int = Field(default=90, ge=1)
    # The pause after a database that did not answer doubles up to this.
    max_retry_seconds: Seconds = 5.0
