"""Run folders as a sweep of ``ssd-train`` writes them, made in milliseconds."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from banana_folder import write_banana_folder
from records import detection_records

from ssd_lightning.records import DetectionRecords, ObjectRecords
from ssd_lightning.scoring.average_precision import voc_average_precision
from ssd_lightning.scoring.stored_detections import StoredDetections, save_detections

CLASSES = ("banana", "plantain")


def truth_of(root: Path, classes: tuple[str, ...] = CLASSES) -> StoredDetections:
    """Return pictures with one banana each, whose classes take turns, and no detections."""
    if not root.exists():
        write_banana_folder(root, num_train=0, num_val=24, side=96)
    with (root / "bananas_val" / "label.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    boxes = np.array([[row[side] for side in ("xmin", "ymin", "xmax", "ymax")] for row in rows], dtype=np.float32)
    ids = np.arange(len(rows))
    objects = ObjectRecords(ids, ids % len(classes) + 1, boxes, np.zeros(len(rows), dtype=bool))
    paths = tuple(str(root / "bananas_val" / "images" / row["img_name"]) for row in rows)
    return StoredDetections(detection_records(), objects, paths, classes)


def detected(truth: StoredDetections, missed: int, seed: int = 0) -> StoredDetections:
    """Return detections near all objects except the first ``missed``, and a false one in the last picture."""
    rng = np.random.default_rng(seed)
    image_ids, labels, boxes, _ = truth.objects
    last = len(truth.paths) - 1
    detections = DetectionRecords(
        np.append(image_ids[missed:], last),
        np.append(labels[missed:], 1),
        np.concatenate([boxes[missed:] + rng.normal(0, 1, (len(boxes) - missed, 1)), [[0, 0, 9, 9]]]).astype(
            np.float32
        ),
        np.append(rng.uniform(0.6, 1, len(boxes) - missed), 0.55).astype(np.float32),
    )
    return truth._replace(detections=detections)


def write_run(folder: Path, stored: StoredDetections | None, config: dict[str, Any], choices: dict[str, str]) -> float:
    """Write a finished run, or without detections a run that has only begun, and return its AP."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"seed": 0, **config}))
    hydra = {"job": {"name": "ssd-train"}, "runtime": {"choices": choices}}
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    if stored is None:
        return np.nan
    ap = voc_average_precision(stored.detections, stored.objects, len(stored.classes)).mean
    scores = {"val/map_50": ap, "val/map": ap / 2, "val/loss": 2 - ap}
    costs = {"best_epoch": 1, "train_seconds": 10 + 10 * ap, "images_per_second": 5.0, "parameters": 1_000_000}
    summary = {"scores": scores, "choices": choices, **costs, "default_boxes": 50}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.csv").write_text(
        f"step,epoch,train/loss,val/loss,val/map_50\n1,0,9.5,,\n2,0,,{4 - ap},{ap / 2}\n4,1,,{2 - ap},{ap}\n"
    )
    save_detections(folder / "detections.npz", *stored)
    return ap


def write_sweep(folder: Path, truth: StoredDetections, seeds: int = 2) -> dict[str, list[float]]:
    """Write the sweep ``loss=multibox,focal seed=0,1,…``, in which focal misses more, and return the APs by loss."""
    found: dict[str, list[float]] = {"multibox": [], "focal": []}
    for number, (loss, missed) in enumerate((("multibox", 2), ("focal", 9))):
        for seed in range(seeds):
            stored = detected(truth, missed + seed % 3, seed)
            config = {"seed": seed, "loss": {"_target_": f"losses.{loss}"}}
            found[loss].append(write_run(folder / str(number * seeds + seed), stored, config, {"loss": loss}))
    return found
