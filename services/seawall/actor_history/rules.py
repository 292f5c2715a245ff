"""The actor rules in force, kept up to date with the policy's files."""

from __future__ import annotations

from pathlib import Path

from seawall.core.errors import Fatal
from seawall.core.policy import ActorPolicy, Rollout
from seawall.core.policy.archive import Archive
from seawall.core.policy.reload import Reloader
from seawall.relay.observe import StreamObserver


class Rules:
    """``current`` is what counts; a change is taken up between two batches.

    Args:
        path: a bundle or a rollout, of which the enforced bundle counts.
        archive: where each bundle that was in force is kept by its digest.
    """

    def __init__(self, path: Path, archive: Archive, observer: StreamObserver) -> None:
        """Load.

        Raises:
            Fatal: BAD_POLICY; NO_ACTOR_RULES where the bundle has no section ``actors``.
        """
        rollout = Rollout.load(path)
        if rollout.policy.actors is None:
            raise Fatal(
                "NO_ACTOR_RULES",
                f"{rollout.policy.name}: the policy has no section actors: copy that of the default bundle "
                "(`seawall policy new FOLDER`)",
            )
        self.current: ActorPolicy = rollout.policy.actors
        self._policy = rollout.policy
        self._observer = observer
        self._reloader = Reloader(path, rollout, self._use, observer.event, archive)

    def _use(self, rollout: Rollout) -> None:
        if rollout.policy.actors is None:
            detail = "the new bundle has no section actors: what counted goes on counting"
            self._observer.event("policy_refused", reason="NO_ACTOR_RULES", detail=detail)
            return
        self.current, self._policy = rollout.policy.actors, rollout.policy

    def describe(self) -> list[dict[str, str]]:
        """What is in force, for the room's status."""
        policy = self._policy
        return [{"name": policy.name, "version": policy.version, "sha256": policy.digest}]

    async def keep_up(self, seconds: float) -> None:
        """Look for changes so often, until cancelled. What counts goes on counting, whatever becomes of that."""
        try:
            await self._reloader.run(seconds)
        except Exception as error:
            self._observer.event("policy_reload_crashed", error=error, reason=type(error).__name__)
