"""``seawall submit``."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.cli.reach import LocalSettings, local_settings, topics_of
from seawall.cli.terminal import console, print_json
from seawall.cli.why import OUTCOME_STYLE
from seawall.core.errors import Fatal
from seawall.local import verdict
from seawall.local.platform import Followed, Platform, Submission, Upload
from seawall.runtime.content import ContentStore
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.sealing import Sealer

EXIT_STATUS = {
    decision_pb2.OUTCOME_ALLOW: 0,
    decision_pb2.OUTCOME_REVIEW: 10,
    decision_pb2.OUTCOME_BLOCK: 11,
    decision_pb2.OUTCOME_BLOCK_AND_REPORT: 12,
    decision_pb2.OUTCOME_HOLD: 13,
}
EXIT_NO_DECISION = 14

#: What a platform would declare; the decoder trusts the bytes alone.
_MEDIA_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".avif": "image/avif",
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
}


def submit(
    *,
    prompt: str | None,
    negative_prompt: str | None,
    turns: Sequence[str],
    images: Sequence[Path],
    input_images: Sequence[Path],
    timeout: float,
    json_output: bool,
) -> None:
    """Send one generation, wait for its decision, print it, exit by its outcome."""
    if prompt == "-":
        prompt = sys.stdin.read()
    if prompt is None and negative_prompt is None and not images and not input_images:
        raise Fatal("NOTHING_TO_SCAN", "nothing to send: give --prompt, --image or --input-image")
    uploads = [_upload(path, generation_pb2.NEXUS_UPLOADED_INPUT) for path in input_images]
    uploads += [_upload(path, generation_pb2.NEXUS_MODEL_OUTPUT) for path in images]
    submission = Submission(
        prompt=prompt,
        negative_prompt=negative_prompt,
        turns=turns,
        uploads=uploads,
        modality=_modality(uploads),
    )
    generation_id = f"submit-{secrets.token_hex(6)}"
    started = time.monotonic()
    followed = asyncio.run(_submit(local_settings(), submission, generation_id, timeout))
    sys.exit(_show(generation_id, followed, time.monotonic() - started, json_output))


async def _submit(settings: LocalSettings, submission: Submission, generation_id: str, timeout: float) -> Followed:
    broker = KafkaBroker(settings.kafka)
    sealer = Sealer.from_settings(settings.sealing)
    store = ContentStore(settings.content)
    async with Platform.open(broker, sealer, store, topics_of(settings)) as platform:
        followed = await platform.submit(submission, generation_id)
        await platform.settled(followed, timeout)
        return followed


def _modality(uploads: Sequence[Upload]) -> generation_pb2.Modality.ValueType:
    if any(upload.media_type.startswith("video/") for upload in uploads):
        return generation_pb2.MODALITY_VIDEO
    return generation_pb2.MODALITY_IMAGE if uploads else generation_pb2.MODALITY_TEXT


def _upload(path: Path, nexus: generation_pb2.Nexus.ValueType) -> Upload:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Fatal("UNREADABLE_FILE", f"{path}: {error.strerror}: give the path of a picture or a video") from error
    return Upload(data, _MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream"), nexus)


def _show(generation_id: str, followed: Followed, seconds: float, json_output: bool) -> int:
    decisions = verdict.distinct(followed.decisions)
    decision = verdict.effective(decisions)
    name = verdict.outcome_name(decision.outcome) if decision else None
    settled = verdict.is_settled(decisions)
    if json_output:
        print_json(
            {
                "generation_id": generation_id,
                "outcome": name,
                "settled": settled,
                "rule_id": decision.rule_id if decision else None,
                "reason_code": decision.reason_code if decision else None,
                "policy_digest": decision.policy_digest if decision else None,
                "attempts": max((one.attempt for one in decisions), default=0),
                "seconds": round(seconds, 3),
            }
        )
    else:
        line = Text.assemble((f" {name or 'NO DECISION'} ", OUTCOME_STYLE.get(name or "", "bold yellow")))
        line.append(f"  {generation_id}")
        if decision is not None:
            line.append(f"  {decision.rule_id} ({decision.reason_code})")
        if not settled:
            line.append("  not settled in time: ask again later", "yellow")
        console().print(line)
        console().print(Text(f"seawall why {generation_id}", "dim"))
    if decision is None or (not settled and decision.outcome == decision_pb2.OUTCOME_HOLD):
        return EXIT_NO_DECISION
    return EXIT_STATUS[decision.outcome]
