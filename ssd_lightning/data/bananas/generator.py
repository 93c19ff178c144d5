"""A generated replacement for the banana data set of d2l.ai (section 14.6), which needs no download.

It has the folders, file names, csv columns, box sizes and box positions of the original. Bananas are rendered on
:mod:`backgrounds <ssd_lightning.data.bananas.backgrounds>` among :mod:`~ssd_lightning.data.bananas.distractors`. A
detector that is trained on these pictures also finds bananas in photographs. Drawing uses numpy and PIL without torch,
so worker processes start quickly.
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
from jaxtyping import Bool, Int64, UInt8
from PIL import Image, ImageFilter

from ssd_lightning.data.bananas.backgrounds import draw_background
from ssd_lightning.data.bananas.banana import covered_pixels, draw_banana, tight_box
from ssd_lightning.data.bananas.colours import SIDE
from ssd_lightning.data.bananas.distractors import draw_distractor
from ssd_lightning.data.bananas.solids import paste, random_light
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

MARGIN = 6
"""Least distance of a banana from the edges of the picture in pixels, within which all positions are equally likely.

In the original, left edges begin at 7 px and right edges end at 250 px, and positions between are uniform.
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
