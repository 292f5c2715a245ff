"""Settings of a relay; every stage's relay has the same."""

from __future__ import annotations

from pydantic import Field

from seawall.runtime.settings import Group, KafkaSettings, RoomSettings, RpcClientSettings, SealingSettings, Seconds


class EngineSettings(Group):
    """How much a relay carries at once, and for how long it tries."""

    # Most generations in one RPC.
    batch_size: int = Field(default=64, ge=1, le=256)
    # RPCs in flight. Two keep a server busy while the next batch is built; more only queue there.
    max_rpcs: int = Field(default=2, ge=1, le=64)
    # A batch that is not full waits, at most so long, for the RPC in flight to end; an idle relay sends at once. So
    # batches grow with the load by themselves: the slower the answers, the more has gathered meanwhile.
    linger_seconds: float = Field(default=0.15, ge=0, le=5)
    # Generations read and not yet acknowledged as signals. Above it, partitions are paused: this bounds the memory.
    max_in_flight: int = Field(default=256, ge=1, le=100_000)
    # How long one generation may take here, retries included; its own deadline may be sooner. Then: an ERROR signal.
    budget_seconds: Seconds = 20.0
    # RPC attempts for one item that fails alone. A failing batch is halved from its second attempt on, so an item of a
    # full batch is alone at the eighth, or at the third where servers go under it: then two alone are all it gets. The
    # pause before the second attempt doubles up to max_retry_seconds.
    max_attempts: int = Field(default=9, ge=1, le=50)
    retry_seconds: Seconds = 0.05
    max_retry_seconds: Seconds = 2.0
    # How long a poll waits for the first record; a request to stop waits as long.
    poll_seconds: Seconds = 0.5
    # Watermarks are committed this often, and when partitions are revoked.
    commit_seconds: Seconds = 0.5
    # How long a revocation waits for batches in flight before it commits what is done.
    revoke_seconds: Seconds = 3.0
    # The fuse: above this share of the last `fuse_window` records as dead letters, the stage stops.
    fuse_window: int = Field(default=200, ge=1)
    fuse_minimum: int = Field(default=25, ge=1)
    fuse_share: float = Field(default=0.5, gt=0, le=1)


class RelaySettings(RoomSettings):
    """A stage's relay: Kafka on one side, the stage's gRPC service on the other."""

    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    rpc_client: RpcClientSettings = Field(default_factory=RpcClientSettings)
    sealing: SealingSettings = Field(default_factory=SealingSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
