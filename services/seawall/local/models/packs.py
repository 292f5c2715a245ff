"""What `seawall models` does with an operator's own packs: prove, install, list, measure, quantise."""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from seawall.classification import lineup as lineups
from seawall.classification.drift import reference_of
from seawall.classification.head import Head
from seawall.classification.rollout import Rollout
from seawall.core import strict_yaml
from seawall.core.errors import Fatal
from seawall.local.models import quantisation
from seawall.local.models.install import alone, put
from seawall.runtime import model_pack
from seawall.runtime.decoding import Unscannable, decode_rgb
from seawall.runtime.model_card import CARD_FILE, MODEL_FILE, ImageClassificationCard, Reference
from seawall.runtime.model_pack import ModelPack

#: Pictures of a calibration or reference set that are looked at.
MAX_PICTURES = 2_000
#: Every so-manyth picture is kept from the calibration, to see the change where it was not calibrated.
_HELD_OUT = 5
_MIN_PICTURES = 10
_IMAGE_TASK = "image-classification"

Pixels = NDArray[np.uint8]


class Checked(NamedTuple):
    """A verified pack; one for pictures has also reproduced its examples here, and brings its head."""

    pack: ModelPack
    head: Head | None


def check(folder: Path) -> Checked:
    """Verify a pack, and have a picture classifier reproduce its examples.

    Raises:
        Fatal: as ``model_pack.load`` and ``lineup.load``.
    """
    pack = model_pack.load(folder)
    if pack.card.task != _IMAGE_TASK:
        return Checked(pack, None)
    return Checked(pack, lineups.load(Rollout(active=(folder,))).heads[folder])


def stamp(folder: Path) -> ModelPack:
    """Write the digest of every file of the folder into its card. The card is otherwise kept, but for its comments.

    Raises:
        Fatal: ``BAD_MODEL_CARD``, or as ``model_pack.load``.
    """
    try:
        data = (folder / CARD_FILE).read_bytes()
    except OSError as error:
        detail = f"{folder.name}/{CARD_FILE} cannot be read ({error.strerror})"
        raise Fatal("MODEL_FILE_MISSING", f"{detail}: write the card first") from error
    card = dict(strict_yaml.parse(data, f"{folder.name}/{CARD_FILE}", "BAD_MODEL_CARD").content)
    card.pop("files", None)
    files = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != CARD_FILE and not path.name.startswith(".")
    )
    return model_pack.write_card(folder, card, files)


def install(folder: Path, home: Path, name: str | None = None) -> tuple[Path, ModelPack]:
    """Copy a pack to ``home/models/<name>``, proven there before it takes its place by a rename.

    Args:
        name: the folder's name; the pack's own if None.

    Raises:
        Fatal: as ``check``; what was there stays.
    """
    pack = check(folder).pack
    models = home / "models"
    models.mkdir(parents=True, exist_ok=True)
    place = models / (name or pack.name)
    with alone(models), tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=models) as scratch:
        copy = Path(scratch, place.name)
        for file in (CARD_FILE, *pack.card.files):
            target = copy / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(pack.path / file, target)
        installed = check(copy).pack
        put(copy, place, Path(scratch))
    return place, installed


class Listed(NamedTuple):
    """A folder below ``models``, and its pack or what is wrong with it."""

    folder: Path
    pack: ModelPack | None
    fault: str


def installed(home: Path) -> list[Listed]:
    """What ``home/models`` holds, each verified but not run."""
    models = home / "models"
    found = []
    for folder in sorted(models.iterdir()) if models.is_dir() else []:
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        try:
            found.append(Listed(folder, model_pack.load(folder), ""))
        except Fatal as error:
            found.append(Listed(folder, None, str(error)))
    return found


class Pictures(NamedTuple):
    """Decoded pictures of a folder."""

    decoded: list[Pixels]
    #: Files that are no pictures, or cannot be read whole, by reason.
    left_out: dict[str, int]


def pictures(folder: Path, min_side: int, limit: int = MAX_PICTURES) -> Pictures:
    """The pictures below a folder, in order of their names, at most ``limit``.

    Raises:
        Fatal: ``TOO_FEW_PICTURES``.
    """
    decoded: list[Pixels] = []
    left_out: dict[str, int] = {}
    files = (path for path in sorted(folder.rglob("*")) if path.is_file()) if folder.is_dir() else iter(())
    for path in files:
        try:
            decoded.append(decode_rgb(path.read_bytes(), min_side=min_side))
        except Unscannable as error:
            left_out[error.reason] = left_out.get(error.reason, 0) + 1
        if len(decoded) == limit:
            break
    if len(decoded) < _MIN_PICTURES:
        detail = f"--images: {len(decoded)} readable pictures below {folder.name}, at least {_MIN_PICTURES} are needed"
        raise Fatal("TOO_FEW_PICTURES", f"{detail}: name a folder with pictures like those that the model will meet")
    return Pictures(decoded, left_out)


def references(head: Head, of: Sequence[Pixels]) -> dict[str, Reference]:
    """By label, how the scores of these pictures are distributed: the card's ``reference``."""
    scores = [head.score(picture) for picture in of]
    return {label: reference_of([score[label] for score in scores]) for label in head.labels}


class Measured(NamedTuple):
    """What running a model takes, at batch 1 on one thread. Times are seconds of CPU."""

    inference: float
    preprocess: float
    #: MB that loading and running it added to this process.
    memory_mb: float
    runs: int


def measure(folder: Path, seconds: float) -> tuple[Head, Measured]:
    """Run a picture classifier over its own first example for so long.

    Raises:
        Fatal: as ``check``; ``WRONG_MODEL_TASK`` if it is not for pictures.
    """
    before = _resident_mb()
    head = _head(folder)
    picture = decode_rgb(head.pack.read(head.card.examples[0].file), min_side=head.min_side)
    whole = _per_call(lambda: head.score(picture), seconds / 2)
    prepared = head.preprocessor(picture)
    inference = _per_call(lambda: head.run(prepared), seconds / 2)
    memory = _resident_mb() - before
    return head, Measured(inference[0], max(whole[0] - inference[0], 0.0), memory, whole[1] + inference[1])


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def _per_call(work: Callable[[], object], seconds: float) -> tuple[float, int]:
    for _ in range(3):
        work()
    began, until, runs = time.thread_time(), time.monotonic() + seconds, 0
    while time.monotonic() < until or not runs:
        work()
        runs += 1
    return (time.thread_time() - began) / runs, runs


class Change(NamedTuple):
    """How far a label's int8 scores lie from the float ones."""

    label: str
    pictures: int
    largest: float
    mean: float
    #: Pictures on another side of the card's threshold.
    flips: int


class Quantised(NamedTuple):
    """A quantised pack and what it changed."""

    pack: ModelPack
    calibrated: list[Change]
    held_out: list[Change]
    #: Inferences per second of CPU, before and after.
    float_rate: float
    int8_rate: float
    bytes_before: int
    bytes_after: int


def quantise(folder: Path, out: Path, of: Pictures, *, max_change: float, tolerance: float | None) -> Quantised:
    """Write an int8 version of a picture classifier's pack to ``out``.

    Its version has "-int8" appended, its references are made anew, its examples and what they must score stay: the
    result has to reproduce them.

    Args:
        of: calibration pictures; every fifth is held out.
        max_change: refused if a score of a held-out picture changes by more.
        tolerance: of the examples, instead of the card's.

    Raises:
        Fatal: ``NOT_QUANTISABLE``, ``QUANTISED_TOO_FAR``, ``OUT_EXISTS``, or as ``check`` for the result; nothing is
            left at ``out`` then.
    """
    if out.exists():
        raise Fatal("OUT_EXISTS", f"{out.name} is there already: name a new folder, or delete it")
    head = _head(folder)
    prepare = head.preprocessor
    held = of.decoded[::_HELD_OUT]
    shown = [picture for number, picture in enumerate(of.decoded) if number % _HELD_OUT]
    original = head.pack.read(MODEL_FILE)
    model = quantisation.prepare(original)
    ranges = quantisation.measure_ranges(model, (prepare(picture) for picture in shown))
    small = quantisation.static_int8(model, ranges, quantisation.classifier_tail(model))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        built = Path(scratch, out.name)
        shutil.copytree(head.pack.path, built)
        (built / MODEL_FILE).write_bytes(small)
        _write_card(built, head, tolerance)
        after = _head(built)
        if any(label.reference for label in head.card.labels):
            _write_card(built, head, tolerance, references(after, of.decoded))
        float_rate, int8_rate = (_rate(one, of.decoded[0]) for one in (head, after))
        calibrated, held_out = _changes(head, after, shown), _changes(head, after, held)
        worst = max(held_out, key=lambda change: change.largest)
        if worst.largest > max_change:
            raise Fatal(
                "QUANTISED_TOO_FAR",
                f"{worst.label} changes by {worst.largest:.3f} on a held-out picture, more than {max_change}: "
                "calibrate with more pictures like those, raise --max-change, or stay with the float model",
            )
        built.rename(out)
    pack = model_pack.load(out)
    return Quantised(pack, calibrated, held_out, float_rate, int8_rate, len(original), len(small))


def _head(folder: Path) -> Head:
    head = check(folder).head
    if head is None:
        raise Fatal("WRONG_MODEL_TASK", f"{folder.name}: only packs for {_IMAGE_TASK} can be measured and quantised")
    return head


def _write_card(built: Path, head: Head, tolerance: float | None, new: dict[str, Reference] | None = None) -> None:
    card: dict[str, Any] = yaml.safe_load(head.pack.read_card())
    files = list(card.pop("files"))
    card["version"] = f"{card['version']}-int8"
    card["minimum_opset"] = max(13, card.get("minimum_opset", 13))
    card["source"] = f"{card.get('source', '')} Static int8, calibrated by the operator.".strip()
    # They were of the float model.
    card.pop("expects", None)
    for example in card["examples"]:
        example["tolerance"] = tolerance or example["tolerance"]
    for label in card["labels"]:
        label.pop("reference", None)
        if new:
            label["reference"] = new[label["name"]].model_dump(mode="json")
    model_pack.write_card(built, card, files)


def _changes(before: Head, after: Head, of: Sequence[Pixels]) -> list[Change]:
    scores = [(before.score(picture), after.score(picture)) for picture in of]
    return list(_by_label(before.card, scores))


def _by_label(card: ImageClassificationCard, scores: Sequence[tuple[Any, Any]]) -> Iterator[Change]:
    for label in card.labels:
        pairs = [(old[label.name], new[label.name]) for old, new in scores]
        differences = [abs(old - new) for old, new in pairs]
        flips = sum((old >= label.threshold) != (new >= label.threshold) for old, new in pairs)
        yield Change(label.name, len(pairs), max(differences), sum(differences) / len(pairs), flips)


def _rate(head: Head, picture: Pixels, runs: int = 20) -> float:
    prepared = head.preprocessor(picture)
    for _ in range(3):
        head.run(prepared)
    began = time.thread_time()
    for _ in range(runs):
        head.run(prepared)
    return runs / (time.thread_time() - began)
