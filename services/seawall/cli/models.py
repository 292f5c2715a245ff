"""``seawall models``: packs proven, installed, listed, measured and quantised; two versions compared."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.table import Table

from seawall.cli.terminal import console, print_json
from seawall.core.errors import Fatal
from seawall.runtime.settings import seawall_home

if TYPE_CHECKING:
    from seawall.classification.comparison import Comparison
    from seawall.local.models.packs import Change
    from seawall.runtime.model_pack import ModelPack


def install_demo() -> None:
    """Install both demo packs under $SEAWALL_HOME/models; quick when they are there and whole."""
    with _extra():
        from seawall.local.models.install import install_demo as install
    install(seawall_home(), console(stderr=True).print)


def install(folder: Path, name: str | None) -> None:
    """Prove a pack and copy it to $SEAWALL_HOME/models."""
    with _extra():
        from seawall.local.models import packs
    place, pack = packs.install(folder, seawall_home(), name)
    console().print(f"{place}: {pack.name}@{pack.version}, pack {pack.digest.hex()[:16]}")


def stamp(folder: Path) -> None:
    """Write the digests of a pack's files into its card."""
    with _extra():
        from seawall.local.models import packs
    pack = packs.stamp(folder)
    console().print(f"{folder}: {len(pack.card.files)} files, pack {pack.digest.hex()[:16]}")


def check(folder: Path, images: Path | None, *, json_output: bool) -> None:
    """Verify a pack and have it reproduce its examples; with pictures, print the references of its labels."""
    with _extra():
        from seawall.local.models import packs
    pack, head = packs.check(folder)
    document = _about(pack)
    if head is not None:
        document["examples_reproduced"] = len(head.card.examples)
        if images is not None:
            of = packs.pictures(images, head.min_side)
            document["pictures"] = {"scored": len(of.decoded), "left_out": of.left_out}
            made = packs.references(head, of.decoded)
            document["references"] = {label: one.model_dump(mode="json") for label, one in made.items()}
    if json_output:
        print_json(document)
        return
    to = console()
    to.print(f"{document['name']}@{document['version']}: whole and verified, pack {document['sha256'][:16]}")
    if head is None:
        to.print(f"task {pack.card.task}: its room has it prove itself")
        return
    to.print(f"{document['examples_reproduced']} examples reproduced; labels {', '.join(head.labels)}")
    if references := document.get("references"):
        to.print(f"{document['pictures']['scored']} pictures scored. For the card, below each label:")
        to.print(yaml.safe_dump({"reference": references}, sort_keys=False, default_flow_style=None, width=100))


def list_installed(*, json_output: bool) -> None:
    """What $SEAWALL_HOME/models holds. Exit status 1 if a folder there is no whole pack."""
    with _extra():
        from seawall.local.models import packs
    found = packs.installed(seawall_home())
    if json_output:
        print_json(
            [{"folder": str(one.folder), **(_about(one.pack) if one.pack else {"fault": one.fault})} for one in found]
        )
    else:
        table = Table(box=None, pad_edge=False)
        for heading in ("folder", "model", "task", "licence", "pack"):
            table.add_column(heading, no_wrap=heading != "licence")
        for one in found:
            if one.pack is None:
                table.add_row(one.folder.name, one.fault, "", "", "")
                continue
            card = one.pack.card
            name = f"{card.name}@{card.version}"
            table.add_row(one.folder.name, name, card.task, card.licence, one.pack.digest.hex()[:16])
        console().print(table)
    if any(one.pack is None for one in found):
        raise SystemExit(1)


def bench(folder: Path, seconds: float, *, json_output: bool) -> None:
    """Measure a picture classifier on this machine, beside what its card expects."""
    with _extra():
        from seawall.local.models import packs
    head, measured = packs.measure(folder, seconds)
    expects = head.card.expects
    document: dict[str, Any] = {
        "model": head.model_name,
        "inference_ms": measured.inference * 1000,
        "preprocess_ms": measured.preprocess * 1000,
        "per_core_second": 1 / measured.inference,
        "memory_mb": measured.memory_mb,
        "runs": measured.runs,
        "card_expects": expects.model_dump(mode="json", exclude_none=True) if expects else None,
    }
    if json_output:
        print_json(document)
        return
    to = console()
    to.print(f"{head.model_name}: batch 1, one thread, {measured.runs} runs")
    _beside(to, "inferences per core-second", document["per_core_second"], expects.per_core_second if expects else None)
    _beside(to, "memory, MB", measured.memory_mb, expects.memory_mb if expects else None)
    to.print(f"  inference {document['inference_ms']:.2f} ms, preprocessing {document['preprocess_ms']:.2f} ms of CPU")


def quantise(
    folder: Path, out: Path, images: Path, max_change: float, tolerance: float | None, *, json_output: bool
) -> None:
    """Write an int8 version of a pack, calibrated on the operator's own pictures, and report what it changed."""
    with _extra():
        from seawall.local.models import packs
    head = packs.check(folder).head
    if head is None:
        raise Fatal("WRONG_MODEL_TASK", f"{folder.name}: only picture classifiers can be quantised here")
    of = packs.pictures(images, head.min_side)
    made = packs.quantise(folder, out, of, max_change=max_change, tolerance=tolerance)
    if json_output:
        print_json(
            {
                **_about(made.pack),
                "calibrated": [one._asdict() for one in made.calibrated],
                "held_out": [one._asdict() for one in made.held_out],
                "left_out": of.left_out,
                "per_core_second": {"float": made.float_rate, "int8": made.int8_rate},
                "model_bytes": {"float": made.bytes_before, "int8": made.bytes_after},
            }
        )
        return
    to = console()
    to.print(f"{out}: {made.pack.name}@{made.pack.version}, pack {made.pack.digest.hex()[:16]}")
    to.print(
        f"{made.int8_rate / made.float_rate:.2f} times as fast ({made.float_rate:.0f} to {made.int8_rate:.0f} a "
        f"core-second), {made.bytes_before / 1e6:.1f} to {made.bytes_after / 1e6:.1f} MB"
    )
    to.print(_changes(made.calibrated, made.held_out))
    if of.left_out:
        to.print(f"left out, as they cannot be read whole: {of.left_out}")


def compare(
    a: str,
    b: str,
    file: Path | None,
    thresholds: Mapping[str, float],
    plot: Path | None,
    *,
    json_output: bool,
) -> None:
    """Compare two versions by what the signals say of both, from Kafka or an exported file."""
    from seawall.classification import comparison
    from seawall.local import signal_log

    signals = signal_log.read_file(file) if file else asyncio.run(_from_kafka())
    found = comparison.compare(signals, a, b, thresholds)
    if plot is not None:
        from seawall.cli.plots import svg

        plot.write_text(svg(found), encoding="utf-8")
    if json_output:
        print_json(comparison.as_json(found))
    else:
        _draw(found)


async def _from_kafka() -> list[Any]:
    from seawall.cli import reach
    from seawall.local import signal_log
    from seawall.runtime.kafka import KafkaBroker

    settings = reach.local_settings()
    topic = reach.topics_of(settings).signals
    # Only what compares: the other stages' signals are many.
    return [one async for one in signal_log.read_topic(KafkaBroker(settings.kafka), topic) if one.stage == _STAGE]


_STAGE = "classification"


def export(file: Path) -> None:
    """Write the lane's classification signals to a file that `compare --file` reads."""
    from seawall.local import signal_log

    count = signal_log.write_file(file, asyncio.run(_from_kafka()))
    console().print(f"{file}: {count} signals")


def _draw(found: Comparison) -> None:
    from seawall.cli.plots import terminal

    to = console()
    both, only_a, only_b = (found.items[key] for key in ("both", found.a, found.b))
    to.print(f"A {found.a}\nB {found.b}")
    to.print(f"{found.signals} signals: {both} items scored by both, {only_a} by A alone, {only_b} by B alone")
    for reason, count in sorted(found.unsaid.items()):
        to.print(f"  {count} times a version on trial had no score: {reason}")
    table = Table(box=None, pad_edge=False)
    for heading in ("label", "threshold", "pairs", "agree", "B raises", "B lowers", "mean diff", "largest", "r"):
        table.add_column(heading, justify="left" if heading == "label" else "right", no_wrap=True)
    for heading in ("A reaches", "B reaches"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in sorted(found.labels.values(), key=lambda one: one.label):
        paired = bool(one.pairs)
        r = one.correlation
        table.add_row(
            one.label,
            f"{one.threshold:g}",
            str(one.pairs),
            f"{one.agreed / one.pairs:.2%}" if paired else "–",
            str(one.raised),
            str(one.lowered),
            f"{one.difference_sum / one.pairs:.4f}" if paired else "–",
            f"{one.largest:.4f}" if paired else "–",
            f"{r:.4f}" if r is not None else "–",
            *(
                f"{one.reached[name] / one.scored[name]:.2%} of {one.scored[name]}" if one.scored[name] else "–"
                for name in (found.a, found.b)
            ),
        )
    to.print(table)
    for one in sorted(found.labels.values(), key=lambda one: one.label):
        if one.pairs:
            to.print(terminal(one))
        for flip in one.flips:
            frame = f" frame {flip.frame}" if flip.frame else ""
            to.print(f"  flip: {flip.generation_id} {flip.item_id}{frame}: A {flip.a:.4f}, B {flip.b:.4f}")


def _changes(calibrated: list[Change], held_out: list[Change]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("label", "pictures", "largest change", "mean change", "flips"):
        table.add_column(heading, justify="left" if heading == "label" else "right", no_wrap=True)
    for title, changes in (("calibration", calibrated), ("held out", held_out)):
        for one in changes:
            row = (str(one.pictures), f"{one.largest:.4f}", f"{one.mean:.4f}", str(one.flips))
            table.add_row(f"{one.label}, {title}", *row)
    return table


def _beside(to: Any, name: str, measured: float, expected: float | None) -> None:
    said = f", its card expects {expected:g}" if expected else ""
    to.print(f"  {name}: {measured:.1f}{said}")


def _about(pack: ModelPack) -> dict[str, Any]:
    card = pack.card
    return {
        "name": card.name,
        "version": card.version,
        "task": card.task,
        "licence": card.licence,
        "sha256": pack.digest.hex(),
        "labels": [label.name for label in getattr(card, "labels", ())],
    }


@contextmanager
def _extra() -> Iterator[None]:
    """Say which extra is missing, where a package is."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("seawall"):
            raise
        raise Fatal("EXTRA_MISSING", f"this needs the package {error.name}: pip install 'seawall[models]'") from error
