"""``seawall prompts``: how well prompts are scored and judged, and the calibration of the block grade."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from seawall.aggregator.settings import AggregatorSettings
from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.cli.terminal import console, print_json
from seawall.core.errors import Fatal
from seawall.core.policy import Policy
from seawall.prompt_scoring import term_packs, term_set
from seawall.prompt_scoring.evaluation import generator, measure, report, samples
from seawall.prompt_scoring.evaluation.embedding_cache import CachedEncoder
from seawall.prompt_scoring.evaluation.samples import Sample
from seawall.prompt_scoring.scorer import Artefacts, PromptScorer
from seawall.prompt_scoring.semantic import SemanticScorer
from seawall.prompt_scoring.settings import PromptScoringSettings
from seawall.prompt_scoring.stage import STAGE
from seawall.runtime import model_pack
from seawall.runtime.settings import load_settings, seawall_home

_GENERATION = generation_pb2.Generation(
    generation_id="evaluation",
    attempt=1,
    modality=generation_pb2.MODALITY_IMAGE,
    prompt=generation_pb2.SealedText(ciphertext=b"-"),
)
_BLOCKS = (decision_pb2.OUTCOME_BLOCK, decision_pb2.OUTCOME_BLOCK_AND_REPORT)


def evaluate(
    *, files: Sequence[Path], split: str, policy: Path | None, plots: Path | None, out: Path | None, json_output: bool
) -> None:
    """Score and judge a set, print the rates, and exit with 1 if a target of Seawall's own set is missed."""
    chosen = [sample for file in files for sample in samples.read(file)] if files else _own(split)
    settings = load_settings(PromptScoringSettings, STAGE.name)
    encoder = _encoder(settings)
    pack = model_pack.load(settings.model, task="text-embedding")
    artefacts = Artefacts(_packs(settings), (SemanticScorer(pack, settings, encoder),), settings.re2_max_mem_bytes)
    prompts = PromptScorer(_Clear(), artefacts, settings)
    judge = Judge(prompts, Policy(policy or AggregatorSettings().policy))
    rows, answers = measure.measure(chosen, judge)
    encoder.save()
    findings = measure.against_targets(rows)
    written = report.plot(rows, measure.curve(chosen, answers), plots) if plots else []
    text = f"set {samples.digest(chosen)}, {len(chosen)} texts\n\n{report.table(rows)}\n{report.targets(findings)}\n"
    if out:
        out.write_text(text, encoding="utf-8")
    if json_output:
        print_json({"set_sha256": samples.digest(chosen), **report.document(rows, findings)})
    else:
        console().print(text)
        for path in written:
            console(stderr=True).print(f"wrote {path}")
    sys.exit(0 if all(one.met for one in findings) else 1)


def calibrate(*, files: Sequence[Path], out: Path | None, version: str) -> None:
    """Fit the head on the given sets (none: Seawall's own train and tune splits) and write it."""
    from seawall.prompt_scoring import block_head

    try:
        from seawall.prompt_scoring.evaluation import calibrate as fitting
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("seawall"):
            raise
        detail = f"calibrating needs the package {error.name}: pip install 'seawall[evaluation]'"
        raise Fatal("EXTRA_MISSING", detail) from error
    chosen = [sample for file in files for sample in samples.read(file)] if files else [*_own("train"), *_own("tune")]
    settings = load_settings(PromptScoringSettings, STAGE.name)
    encoder = _encoder(settings)
    terms = term_set.TermSet(_packs(settings), settings.re2_max_mem_bytes)
    pack = model_pack.load(settings.model, task="text-embedding")
    head, choice = fitting.fit(chosen, terms, encoder, pack, settings, version)
    encoder.save()
    target = out or block_head.bundled()
    target.write_bytes(head.data())
    console().print(f"wrote {target.name}: fitted on {head.train_templates}, calibration {head.calibration}")
    console().print(f"with templates held out in turn: {choice}")


def export(*, split: str, out: Path) -> None:
    """Write one of Seawall's own splits as a set's file."""
    chosen = _own(split)
    samples.write(out, chosen)
    console().print(f"wrote {out.name}: {len(chosen)} texts, {samples.digest(chosen)}")


class Judge:
    """A scorer and a policy as ``measure.Judge``."""

    def __init__(self, prompts: PromptScorer, policy: Policy) -> None:
        self._prompts = prompts
        self._policy = policy

    def __call__(self, sample: Sample) -> measure.Answer:
        result = self._prompts.score_text(sample.text, sample.negative)
        scores = {label.label: label.score for label in result.labels}
        signal = signal_pb2.Signal(generation_id=_GENERATION.generation_id, attempt=1, stage=STAGE.name)
        item = signal.items.add(item_id="prompt", nexus=generation_pb2.NEXUS_ATTEMPT)
        item.status, item.reason = result.status, result.reason
        item.labels.extend(result.labels)
        verdict = self._policy.judge(_GENERATION, [signal], [])
        if verdict.outcome == decision_pb2.OUTCOME_ALLOW:
            outcome = measure.Outcome.ALLOWED
        else:
            blocked = verdict.outcome in _BLOCKS
            outcome = measure.Outcome.BLOCKED if blocked else measure.Outcome.REVIEWED
        detected = scores.get("minor_sexual", 0.0) > 0
        return measure.Answer(detected, outcome, scores.get("minor_sexual_semantic", 0.0))


class _Clear:
    """Texts of a set are in clear: nothing is to be opened."""

    def open(self, sealed: generation_pb2.SealedText, generation_id: str, field: str) -> str:
        raise Fatal("NOT_SEALED", "texts of a set are scored in clear")


def _packs(settings: PromptScoringSettings) -> list[term_packs.TermPack]:
    packs = [term_packs.load(folder) for folder in term_packs.bundled()] if settings.bundled_packs else []
    return packs + [term_packs.load(pack.path, pack.sha256) for pack in settings.packs]


def _own(split: str) -> list[Sample]:
    for name in generator.SPLITS:
        if name == split:
            return generator.build(name)
    raise Fatal("BAD_EVALUATION_SET", f"split must be one of {', '.join(generator.SPLITS)}")


def _encoder(settings: PromptScoringSettings) -> CachedEncoder:
    pack = model_pack.load(settings.model, task="text-embedding")
    return CachedEncoder(pack, seawall_home() / "cache" / "embeddings", settings.window_tokens)
