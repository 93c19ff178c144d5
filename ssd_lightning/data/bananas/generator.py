"""A generated replacement for the banana data set of d2l.ai (section 14.6), which needs no download.

It has the folders, file names, csv columns, box sizes and box positions of the original. Bananas are rendered, and
:mod:`ssd_lightning.data.bananas.scenery` draws their surroundings. A detector that is trained on these pictures also
finds bananas in photographs. Drawing uses numpy and PIL without torch, so worker processes start
quickly.
"""

import csv
import glob
import io
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image, ImageFilter

from ssd_lightning.data.bananas.scenery import (
    SIDE,
    Light,
    Solid,
    draw_background,
    draw_distractor,
    hsv,
    mixed,
    paste,
    random_light,
    random_tilt,
    render_solid,
    smooth_noise,
    smoothstep,
    swept_curve,
    turn_in_picture,
)
from ssd_lightning.require import require_whole_number
from ssd_lightning.run_folder import naming

GENERATOR_VERSION = 1
"""Version of the pictures; increase it when the pictures of a seed change, so that older folders are refused."""
SECONDS_UNTIL_ABANDONED = 3600.0
"""Age of the newest picture from which an unfinished folder counts as abandoned."""
SETTINGS_FILE = "generated.json"
LABEL_COLUMNS = ("img_name", "label", "xmin", "ymin", "xmax", "ymax")
BANANA_LABEL = 0
SPLITS = ("bananas_train", "bananas_val")
MAX_BANANAS = 10
"""Largest number of bananas that fit into a picture without hiding each other."""

# The ranges reproduce the boxes of the original, measured on the 100 boxes of bananas_val/label.csv. The quantiles at
# 5, 25, 50, 75 and 95 % of √(width·height) are 39, 44, 52, 57 and 61 px. Those of ln(width/height) are −0.30, −0.08,
# 0.02, 0.12 and 0.28, independent of the size. Left edges begin at 7 px, right edges end at 250 px, and positions
# between are uniform. Sides in the training split are 32 … 83 px. The ranges are a pixel larger, because _extents
# overestimates a banana by a pixel.
SIZE_RANGE = (38.5, 64.5)
SIDE_RANGE = (34, 83)
LOG_ASPECT_MEAN, LOG_ASPECT_STD = 0.01, 0.17
MARGIN = 6
FREE_TURN_SHARE = 0.1
"""Share of bananas with a random rotation instead of an aspect ratio of the original.

The boxes of the original are almost square, but photographs also show bananas that lie flat.
"""

MAX_DISTRACTORS = 3
MIN_CONTRAST = 70
"""Wanted difference between a banana and the area it covers, in levels of 255, in the most different channel."""
MAX_BOX_IOU = 0.1
PLACES_TRIED = 60


class Picture(NamedTuple):
    """A generated picture and its ground truth."""

    pixels: UInt8[np.ndarray, "256 256 3"]
    boxes: Int64[np.ndarray, "bananas 4"]
    """Box edges (xyxy) in pixels: xmax − xmin is the number of columns that the banana covers."""


# ------------------------------------------------------------------------------------------------------- one banana


class BananaShape(NamedTuple):
    """A banana of length 1 and the positions of its parts."""

    solid: Solid
    along: Float[np.ndarray, " along"]
    """Position along the banana: 0 at the cut of the stem, 1 at the tip."""
    ridges: Float[np.ndarray, " around"]
    """Closeness to an edge between facets: 1 on the edge, 0 in the middle of a facet."""
    stem: float
    """Position where the stem joins the body, on the scale of ``along``."""


def random_shape(rng: np.random.Generator) -> BananaShape:
    """Draw the shape of a banana: thick or thin, nearly straight or strongly bent, with three to five facets."""
    points, around = 240, 176  # Enough surface points for the largest banana, see render_solid.
    along = np.linspace(0, 1, points)
    stem = rng.uniform(0.07, 0.17)
    stem_radius = rng.uniform(0.24, 0.36)  # All radii here are relative to the thickest part.
    profile = [(0.0, 1.25 * stem_radius), (0.02, 1.25 * stem_radius), (0.06, stem_radius), (stem, 1.1 * stem_radius)]
    profile += [(stem + 0.09, 0.68), (stem + 0.22, 0.93), (0.55, 1.0), (0.74, 0.96), (0.86, 0.80)]
    profile += [(0.94, rng.uniform(0.45, 0.6)), (0.975, 0.28), (1.0, 0.20)]
    knots, thickness = zip(*profile, strict=True)
    window = np.hanning(21) / np.hanning(21).sum()  # Smooths the corners of the profile.
    radius = np.convolve(np.pad(np.interp(along, knots, thickness), 10, mode="edge"), window, mode="valid")

    bend = rng.uniform(0.25, 2.0)  # Radians from end to end of the body.
    turning = bend * (0.5 + np.sin(np.pi * along) * rng.uniform(0.5, 1.5))
    turning += rng.normal(0.2, 0.25) * np.exp(-(((along - stem) / 0.05) ** 2)) * 10
    spine, heading = swept_curve(turning / points * rng.choice([-1, 1]))

    facets = int(rng.integers(3, 6))
    phase = facets * np.linspace(0, 2 * np.pi, around, endpoint=False) + rng.uniform(0, 2 * np.pi)
    # A facet is flat at an amplitude of 1 / (facets² − 1) and concave above it. Facets vanish towards the tip.
    amplitude = rng.uniform(0.3, 1.0) / (facets**2 - 1) * smoothstep(along, 1.0, 0.8)
    outline = 1 + amplitude[:, None] * np.cos(phase)
    solid = Solid(spine, heading, radius * rng.uniform(0.08, 0.13), outline)
    ridges = np.exp((np.cos(phase) - 1) / 0.06)
    return BananaShape(solid, along.astype(np.float32), ridges.astype(np.float32), stem)


def random_skin(rng: np.random.Generator, shape: BananaShape) -> Float[np.ndarray, "3 along around"]:
    """Draw the surface colours: from green to brown spots, with a woody stem and a black tip."""
    along, size = shape.along[:, None], (len(shape.along), len(shape.ridges))
    ripeness = rng.choice([rng.uniform(0, 0.3), rng.uniform(0.3, 0.7), rng.uniform(0.7, 1)], p=[0.12, 0.55, 0.33])
    hue = np.interp(ripeness, [0, 0.25, 0.5, 1], [0.205, 0.165, 0.14, 0.12]) + rng.normal(0, 0.006)
    saturation = np.interp(ripeness, [0, 0.3, 1], [0.7, 0.72, 0.82]) + rng.normal(0, 0.08)
    body = hsv(hue, min(saturation, 1.0), rng.uniform(0.86, 1.0) - 0.2 * max(0.0, 0.3 - ripeness))
    green = hsv(rng.uniform(0.19, 0.23), rng.uniform(0.6, 0.8), rng.uniform(0.55, 0.75))
    brown = hsv(rng.uniform(0.06, 0.1), rng.uniform(0.5, 0.75), rng.uniform(0.2, 0.45))

    mottled = smooth_noise(rng, size, (10, 24))  # Elongated along the banana.
    unripe = rng.uniform(0.0, 1.2) * (1 - ripeness)
    ends = smoothstep(along, shape.stem + rng.uniform(0.1, 0.3), shape.stem) + 0.5 * smoothstep(along, 0.85, 1.0)
    skin = mixed(body, green, np.clip(unripe * ends * (1 + 0.3 * mottled), 0, 1))
    skin = mixed(skin, brown, shape.ridges[None, :] * rng.uniform(0, 0.35))
    overripe = max(0.0, ripeness - 0.6) * rng.uniform(0, 2.5)
    specks = smoothstep(smooth_noise(rng, size, (50, 30)), 2.0 - 1.2 * overripe, 2.3 - 1.2 * overripe)
    bruises = smoothstep(smooth_noise(rng, size, (14, 7)), 2.1 - 1.1 * overripe, 2.6 - 1.1 * overripe)
    skin = mixed(skin, brown, np.maximum(specks, 0.7 * bruises) * rng.uniform(0.4, 1.0))
    woody = green * (1 - ripeness) + brown * 1.5 * ripeness
    skin = mixed(skin, woody, smoothstep(along, shape.stem, shape.stem * 0.4) * rng.uniform(0.3, 1.0))
    skin = mixed(skin, brown * 0.7, smoothstep(along, 0.035, 0.01) * rng.uniform(0.4, 1.0))
    skin = mixed(skin, brown * 0.35, smoothstep(along, 0.95, 0.985) * rng.uniform(0.7, 1.0))
    return skin * (1 + rng.uniform(0.01, 0.05) * mottled)


def draw_banana(rng: np.random.Generator, light: Light) -> Image.Image:
    """Draw a banana (RGBA) with a size that occurs in the original data set."""
    shape = random_shape(rng)
    lying = random_tilt(rng, roll=0.9, pitch=0.6)
    turns = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    extents = _extents(shape.solid, lying, turns)
    log_aspects = np.log(extents[:, 0] / extents[:, 1])
    largest = np.log(SIDE_RANGE[1] / SIDE_RANGE[0])
    if rng.random() < FREE_TURN_SHARE:
        suitable = np.flatnonzero(np.abs(log_aspects) < largest)
    else:
        miss = np.abs(log_aspects - rng.normal(LOG_ASPECT_MEAN, LOG_ASPECT_STD))
        suitable = np.flatnonzero(miss <= max(miss.min(), 0.05))
    chosen = rng.choice(suitable)
    width, height = extents[chosen]
    scale = rng.uniform(*SIZE_RANGE) / np.sqrt(width * height)
    scale = np.clip(scale, SIDE_RANGE[0] / min(width, height), SIDE_RANGE[1] / max(width, height))
    pose = turn_in_picture(turns[chosen]) @ lying
    return render_solid(shape.solid, random_skin(rng, shape), pose, scale, light, rng.uniform(0.0, 0.45))


def _extents(
    solid: Solid, pose: Float[np.ndarray, "3 3"], turns: Float[np.ndarray, " turns"]
) -> Float[np.ndarray, "turns 2"]:
    """Estimate width and height of the body in the picture after a further rotation by each angle.

    The estimate treats the outline as a circle and the ends as balls, so it is about a pixel too large.
    """
    x, y = (solid.spine @ pose[:2, :2].T).T
    horizontal = np.outer(np.cos(turns), x) - np.outer(np.sin(turns), y)
    vertical = np.outer(np.sin(turns), x) + np.outer(np.cos(turns), y)
    return np.stack(
        [(c + solid.radius).max(axis=1) - (c - solid.radius).min(axis=1) for c in (horizontal, vertical)], axis=-1
    )


def covered_pixels(banana: Image.Image) -> Bool[np.ndarray, "height width"]:
    """Return a mask of the pixels (of an RGBA image) that the banana covers by more than half."""
    return np.asarray(banana.getchannel("A")) > 127


def tight_box(mask: Bool[np.ndarray, "height width"]) -> Int64[np.ndarray, "4"]:
    """Return the edges (xyxy) of the smallest box around the set pixels; at least one pixel must be set."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.int64)


# ------------------------------------------------------------------------------------------------------ one picture


def draw_picture(rng: np.random.Generator, num_bananas: int) -> Picture:
    """Draw a picture with exactly ``num_bananas`` bananas.

    Nothing covers a banana as long as all of them fit. Up to five bananas have always fitted.

    Raises:
        ValueError: if the number is not in 0 … 10.
    """
    if not 0 <= num_bananas <= MAX_BANANAS:
        raise ValueError(f"num_bananas: expected 0 … {MAX_BANANAS}, got {num_bananas}")
    light = random_light(rng)
    canvas = draw_background(rng)
    for _ in range(rng.integers(MAX_DISTRACTORS + 1)):
        thing = draw_distractor(rng, light)
        left, top = rng.integers(-20, SIDE - 20, 2).tolist()
        canvas = paste(canvas, thing, left, top, light)
    boxes, taken = np.zeros((0, 4), np.int64), np.zeros((SIDE, SIDE), bool)
    for _ in range(num_bananas):
        banana = draw_banana(rng, light)
        mask = covered_pixels(banana)
        in_image = tight_box(mask)
        xmin, ymin, xmax, ymax = in_image.tolist()
        cut = banana.crop((xmin, ymin, xmax, ymax))
        corner = _free_place(rng, cut, np.asarray(canvas), boxes, taken)
        left, top = (corner - in_image[:2]).tolist()
        canvas = paste(canvas, banana, left, top, light)
        boxes = np.concatenate([boxes, [in_image + np.array([left, top, left, top])]])
        taken[ymin + top : ymax + top, xmin + left : xmax + left] |= mask[ymin:ymax, xmin:xmax]
    return Picture(photograph(rng, canvas), boxes)


def _free_place(
    rng: np.random.Generator,
    banana: Image.Image,
    canvas: UInt8[np.ndarray, "256 256 3"],
    boxes: Int64[np.ndarray, "boxes 4"],
    taken: Bool[np.ndarray, "256 256"],
) -> Int64[np.ndarray, "2"]:
    """Choose the left top corner (x, y) of the banana among random positions.

    A position is free if it covers no taken pixel. The first choice is a free position with little box overlap and
    enough contrast to the background. The second choice is the free position with the least overlap. The last choice
    is any position with the least overlap.
    """
    mask, size = covered_pixels(banana), np.array(banana.size)
    colour = np.asarray(banana)[mask, :3].mean(axis=0)
    corners = rng.integers(MARGIN, SIDE - MARGIN - size, (PLACES_TRIED, 2), endpoint=True)
    low = np.maximum(corners[:, None], boxes[None, :, :2])
    high = np.minimum((corners + size)[:, None], boxes[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    union = size.prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1) - shared
    overlap = np.maximum((shared / union).max(axis=1, initial=0.0), MAX_BOX_IOU)
    by_overlap = corners[np.argsort(overlap, kind="stable")]
    free = []
    for x, y in by_overlap.tolist():
        place = slice(y, y + size[1]), slice(x, x + size[0])
        if (taken[place] & mask).any():
            continue
        if np.abs(canvas[place][mask].mean(axis=0) - colour).max() >= MIN_CONTRAST:
            return np.array([x, y])
        free.append((x, y))
    return np.array(free[0]) if free else by_overlap[0]


def photograph(rng: np.random.Generator, canvas: Image.Image) -> UInt8[np.ndarray, "256 256 3"]:
    """Simulate a camera: focus, exposure, white balance, sensor noise, sharpening and JPEG."""
    if rng.random() < 0.6:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.3)))
    gains = rng.normal(1, 0.08) * rng.normal(1, 0.04, 3)
    pivot, contrast = rng.uniform(0.3, 0.7), rng.uniform(0.8, 1.25)
    response = (np.linspace(0, 1, 256) ** np.exp(rng.normal(0, 0.15)) - pivot) * contrast + pivot
    exposed = canvas.point((np.clip(np.outer(gains, response), 0, 1) * 255).astype(int).ravel().tolist())
    noise = rng.exponential(2.0) * rng.standard_normal((SIDE, SIDE, 1), dtype=np.float32)
    taken = Image.fromarray(np.clip(np.asarray(exposed) + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        taken = taken.filter(ImageFilter.UnsharpMask(radius=1.5, percent=int(rng.integers(30, 120)), threshold=0))
    if rng.random() < 0.6:
        stored = io.BytesIO()
        taken.save(stored, "JPEG", quality=int(rng.integers(35, 96)))
        taken = Image.open(stored)
    return np.array(taken)


# -------------------------------------------------------------------------------------------------- the whole folder


class Settings(NamedTuple):
    """The settings that determine the pictures; stored beside them."""

    generator_version: int
    num_train: int
    num_val: int
    min_bananas: int
    max_bananas: int
    seed: int


def generate_bananas(
    root: Path,
    num_train: int = 1000,
    num_val: int = 100,
    min_bananas: int = 1,
    max_bananas: int = 1,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Generate a banana data set in ``root``, or do nothing if ``root`` already holds it.

    ``root`` appears only when it is complete.

    Args:
        root: folder to create.
        num_train: number of training pictures.
        num_val: number of validation pictures.
        min_bananas: smallest number of bananas in a picture. A picture without bananas has no row in ``label.csv``.
        max_bananas: largest number of bananas in a picture.
        seed: seed of the pictures.
        workers: number of processes; by default one per available core. The pictures do not depend on it.

    Raises:
        ValueError: if a number is out of range, or if ``root`` holds anything else.
    """
    require_whole_number("num_train", num_train, 1)
    require_whole_number("num_val", num_val, 1)
    require_whole_number("min_bananas", min_bananas, 0)
    require_whole_number("max_bananas", max_bananas, min_bananas)
    if max_bananas > MAX_BANANAS:
        raise ValueError(f"max_bananas: expected at most {MAX_BANANAS}, got {max_bananas}")
    require_whole_number("seed", seed, 0)
    if workers is not None:
        require_whole_number("workers", workers, 1)
    settings = Settings(GENERATOR_VERSION, num_train, num_val, min_bananas, max_bananas, seed)
    root = root.resolve()
    if _holds(root, settings):
        return
    with naming(root):
        root.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{root.name}-unfinished-"
    _remove_abandoned(root.parent, prefix)
    # A sibling of root is on the same file system, so it can be renamed in one step.
    with naming(root), tempfile.TemporaryDirectory(dir=root.parent, prefix=prefix) as scratch:
        unfinished = Path(scratch) / root.name
        _write_data_set(unfinished, settings, workers or _available_cores())
        try:
            unfinished.rename(root)
        except OSError:
            # Another process may have finished first; its result is as good if it has the same settings.
            if not _holds(root, settings):
                raise


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Delete the unfinished folders of killed processes; folders still being written stay."""
    for unfinished in parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(FileNotFoundError):  # Another process may rename or remove the folder at the same time.
            written = max(folder.stat().st_mtime for folder in [unfinished, *unfinished.glob("*/*/images")])
            if time.time() - written > SECONDS_UNTIL_ABANDONED:
                shutil.rmtree(unfinished, ignore_errors=True)


def _holds(root: Path, settings: Settings) -> bool:
    """Return True if the folder holds the data set of these settings, and False if it is missing or empty.

    Raises:
        ValueError: if the folder holds anything else.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    advice = "Try another root, or delete this one."
    file = root / SETTINGS_FILE
    if not file.is_file():
        raise ValueError(f"root: expected generated bananas or no files, got {root} without {SETTINGS_FILE}. {advice}")
    try:
        found = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: expected JSON, got text that does not parse ({error}). {advice}") from error
    if found != settings._asdict():
        raise ValueError(f"root: expected {root} generated with {settings._asdict()}, got {found}. {advice}")
    return True


def _available_cores() -> int:
    """Return the number of cores available to this process; containers often grant fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_data_set(folder: Path, settings: Settings, workers: int) -> None:
    counts = (settings.num_train, settings.num_val)
    for split in SPLITS:
        (folder / split / "images").mkdir(parents=True)
    jobs = [(split, number) for split in range(len(SPLITS)) for number in range(counts[split])]
    draw = partial(_write_picture, folder, settings)
    with _drawn(draw, jobs, min(workers, len(jobs))) as boxes_by_job:
        rows = [
            (split, (f"{number}.png", BANANA_LABEL, *box))
            for (split, number), boxes in zip(jobs, _with_progress(boxes_by_job, len(jobs)), strict=True)
            for box in boxes
        ]
    for index, split in enumerate(SPLITS):
        with (folder / split / "label.csv").open("w", newline="") as file:
            lines = chain([LABEL_COLUMNS], (row for row_split, row in rows if row_split == index))
            csv.writer(file, lineterminator="\n").writerows(lines)
    (folder / SETTINGS_FILE).write_text(json.dumps(settings._asdict(), indent=2) + "\n")


def _write_picture(folder: Path, settings: Settings, job: tuple[int, int]) -> list[list[int]]:
    """Draw and save one picture, given as (split, number), and return its boxes; it has its own random generator."""
    split, number = job
    rng = np.random.default_rng([settings.seed, split, number])
    picture = draw_picture(rng, int(rng.integers(settings.min_bananas, settings.max_bananas, endpoint=True)))
    file = folder / SPLITS[split] / "images" / f"{number}.png"
    Image.fromarray(picture.pixels).save(file, compress_level=1)  # Noise hardly compresses, so speed matters more.
    return picture.boxes.tolist()


@contextmanager
def _drawn(
    draw: "partial[list[list[int]]]", jobs: list[tuple[int, int]], workers: int
) -> Iterator[Iterable[list[list[int]]]]:
    """Yield the results in the order of the jobs; cancel pending jobs on an error. One worker means this process."""
    if workers == 1:
        yield map(draw, jobs)
        return
    # A forked child could wait forever for a lock that a thread of torch holds, so processes are spawned.
    executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        with _main_module_hidden():
            results = executor.map(draw, jobs, chunksize=8)  # Starts the processes.
        yield results
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Let spawned processes start without importing the running program.

    By default a spawned process imports the main module. That takes ten seconds for a training program with torch, and
    fails for a script without ``if __name__ == "__main__"``. The drawing processes need only this module.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _with_progress(results: Iterable[list[list[int]]], total: int) -> Iterable[list[list[int]]]:
    from rich.progress import track  # Imported here, because the drawing processes do not need it.

    return track(results, "Drawing bananas", total)
