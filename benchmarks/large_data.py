"""Measure time and memory on data of the size of COCO: 120,000 pictures with 900,000 objects, and 200 runs.

    uv run python benchmarks/large_data.py

A few generated pictures are linked many times, so that little is written to the disk. The json files are generated,
too. Each row is a process of its own: its wall time, its time on all cores, and its largest resident memory. Each row
is also measured with a tenth of the data, so that the last columns show the growth: 10.0 is linear. Importing the
package takes 3 to 6 core seconds and up to 1050 MB in each row.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from PIL import Image

from ssd_lightning.records import DetectionRecords, ObjectRecords
from ssd_lightning.scoring.stored_detections import save_detections

PICTURES, OBJECTS, CLASSES = 120_000, 900_000, 80
SCORED_SHARE = 24
"""One picture in 24 is scored: 5,000, as in COCO."""
DETECTIONS_PER_PICTURE = 100
"""COCO's limit."""
RUNS = 200
WIDTH, HEIGHT = 640, 480
DIFFERENT = 40
"""Number of different pictures in each split. A file system allows a picture only some 60,000 links."""

LOADER = """
import sys
from ssd_lightning import COCO, DetectionDataModule
data = DetectionDataModule(COCO(sys.argv[1], "train.json", "val.json"), 300, batch_size=8, num_workers=0)
data.prepare_data()
data.setup()
next(iter(data.train_dataloader()))
"""


class Cost(NamedTuple):
    """The cost of a process."""

    seconds: float
    core_seconds: float
    """Time on all cores, which other work on the machine hardly changes."""
    megabytes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="share of the data, for a quick look")
    parser.add_argument("--part", type=int, default=10, help="growth is measured from this part of the data; 1: not")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        parts = dict.fromkeys((arguments.part, 1))
        costs = {part: measure(Path(name) / str(part), arguments.share / part) for part in parts}
        small, large = costs[arguments.part], costs[1]
    print("| work | seconds | core seconds | memory (MB) | growth of core seconds | growth of memory |")
    print("|---|---|---|---|---|---|")
    for work, cost in large.items():
        tenth = small[work]
        print(
            f"| {work} | {cost.seconds:.1f} | {cost.core_seconds:.1f} | {cost.megabytes:.0f} "
            f"| {cost.core_seconds / tenth.core_seconds:.1f} | {cost.megabytes / tenth.megabytes:.1f} |"
        )


def measure(folder: Path, share: float) -> dict[str, Cost]:
    """Measure all rows with a share of the data."""
    data = folder / "data"
    rng = np.random.default_rng(0)
    pictures = max(SCORED_SHARE, round(PICTURES * share))
    scored = pictures // SCORED_SHARE
    write_pictures(data / "images", scored, pictures, rng)
    write_json(data / "val.json", 0, scored, rng)
    write_json(data / "train.json", scored, pictures, rng)
    write_runs(folder / "runs", data / "images", max(2, round(RUNS * share)), rng)
    write_run(folder / "scored", data / "images", scored, 0, rng)
    command = [sys.executable, "-c"]
    ssd = "from ssd_lightning.cli.commands import {0}; {0}()"
    coco = ["data=coco", f"data.root={data}", "data.annotations=train.json", "data.val_annotations=val.json"]
    return {
        "`ssd-check`": run(folder, *command, ssd.format("check"), *coco),
        "start of the loader, first time": run(folder, *command, LOADER, str(data), cache="first"),
        "start of the loader, from the cache": run(folder, *command, LOADER, str(data), cache="first"),
        "scores of one validation": run(folder, *command, ssd.format("evaluate"), f"detections={folder / 'scored'}"),
        "`ssd-compare` of all runs": run(folder, *command, ssd.format("compare"), f"runs={folder / 'runs'}"),
    }


def run(folder: Path, *command: str, cache: str = "check") -> Cost:
    """Run a process to its end."""
    start = time.perf_counter()
    with (folder / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"SSD_CACHE": str(folder / cache)},
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        output.seek(0)
        text = output.read()
    process.returncode = os.waitstatus_to_exitcode(status)
    # ssd-check ends with 1 if it finds faults, and these data have none.
    assert process.returncode == 0, text
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def write_pictures(folder: Path, scored: int, count: int, rng: np.random.Generator) -> None:
    """Write a few pictures of coarse noise for each split, and link them until there are enough."""
    folder.mkdir(parents=True)
    for first, last in ((0, scored), (scored, count)):
        written = range(first, min(first + DIFFERENT, last))
        for number in written:
            noise = rng.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((WIDTH, HEIGHT)).save(folder / f"{number}.jpg")
        for number in range(written.stop, last):
            os.link(folder / f"{first + (number - first) % DIFFERENT}.jpg", folder / f"{number}.jpg")


def boxes(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return boxes as x, y, width and height in pixels."""
    size = np.exp(rng.uniform(np.log(0.05), np.log(0.8), (count, 2)))
    corner = rng.random((count, 2)) * (1 - size)
    return np.round(np.concatenate([corner, size], axis=1) * (WIDTH, HEIGHT, WIDTH, HEIGHT), 2)


def write_json(path: Path, first: int, last: int, rng: np.random.Generator) -> None:
    count = (last - first) * OBJECTS // PICTURES
    images = np.concatenate([np.arange(first, last), rng.integers(first, last, max(0, count - (last - first)))])
    labels = rng.integers(1, CLASSES + 1, len(images))
    content = {
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT}
            for number in range(first, last)
        ],
        "categories": [{"id": number, "name": f"class {number:02d}"} for number in range(1, CLASSES + 1)],
        "annotations": [
            {"id": number, "image_id": image, "category_id": label, "bbox": box, "iscrowd": 0}
            for number, (image, label, box) in enumerate(
                zip(images.tolist(), labels.tolist(), boxes(len(images), rng).tolist(), strict=True)
            )
        ],
    }
    path.write_text(json.dumps(content))


def write_runs(folder: Path, pictures: Path, count: int, rng: np.random.Generator) -> None:
    """Write run folders with the detections of a few hundred pictures each."""
    for number in range(count):
        write_run(folder / str(number), pictures, 250, number, rng)


def write_run(folder: Path, place: Path, pictures: int, number: int, rng: np.random.Generator) -> None:
    """Write the files of a run that are read later: the learning rate and the seed vary."""
    (folder / ".hydra").mkdir(parents=True)
    config = {"seed": number % 4, "optimizer": {"lr": 0.001 * (1 + number // 4)}}
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / ".hydra" / "hydra.yaml").write_text(
        yaml.safe_dump({"hydra": {"job": {"name": "ssd-train"}, "runtime": {"choices": {}}}})
    )
    count = pictures * OBJECTS // PICTURES
    found = pictures * DETECTIONS_PER_PICTURE
    same = np.random.default_rng(1)  # All runs are scored on the same pictures.
    xyxy = [boxes(length, each).astype(np.float32) for length, each in ((count, same), (found, rng))]
    for each in xyxy:
        each[:, 2:] += each[:, :2]
    truth = ObjectRecords(
        np.arange(count) % pictures, same.integers(1, CLASSES + 1, count), xyxy[0], np.zeros(count, dtype=bool)
    )
    # Half of the objects are found.
    xyxy[1][: count // 2] = xyxy[0][: count // 2] + 2
    labels = rng.integers(1, CLASSES + 1, found)
    labels[: count // 2] = truth.labels[: count // 2]
    ids = np.arange(found) % pictures
    ids[: count // 2] = truth.image_ids[: count // 2]
    detections = DetectionRecords(ids, labels, xyxy[1], rng.random(found).astype(np.float32))
    names = tuple(f"class {label:02d}" for label in range(1, CLASSES + 1))
    paths = tuple(place / f"{picture}.jpg" for picture in range(pictures))
    save_detections(folder / "detections.npz", detections, truth, paths, names)
    score = 0.3 + 0.001 * number
    summary = {
        "scores": {"val/map_50": score, "val/map": score / 2, "val/loss": 2.0},
        "choices": {},
        "best_epoch": 1,
        "train_seconds": 60.0,
        "images_per_second": 30.0,
        "parameters": 1_000_000,
        "default_boxes": 3234,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = ["step,epoch,train/loss,val/map_50"]
    rows += [f"{step},{step // 10},{2 + 1 / (1 + step)},{score if step % 10 == 9 else ''}" for step in range(200)]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
