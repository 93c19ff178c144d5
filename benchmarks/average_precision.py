"""Compare VOC scores with faster-coco-eval and pycocotools, on a data set of the size of VOC2007 test, on one core.

    uv run python benchmarks/average_precision.py --repeats 3

Our time includes input checks and both VOC averages, from raw records. The time of the other libraries does not
include the indexing of annotations. These libraries compute COCO's protocol (10 IoU thresholds × 4 area ranges). They
also compute the part of it that is the same work as ours (IoU 0.5, all areas).
"""

import argparse
import contextlib
import io
import os
import statistics
import time
from collections.abc import Callable

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval

from ssd_lightning.records import DetectionRecords, ObjectRecords, select
from ssd_lightning.scoring.average_precision import average_curves, precision_recall_curves, voc_average_precision

NUM_IMAGES = 4952
NUM_CLASSES = 20
NUM_OBJECTS = 12032
"""Objects of VOC2007 test without difficult ones, which COCO does not have."""
NUM_DETECTIONS = 67000
"""Detections of an SSD300 with a score threshold of 0.01: 13.5 per image on average."""
WIDTH, HEIGHT = 500.0, 375.0


def make_records(seed: int = 0) -> tuple[DetectionRecords, ObjectRecords]:
    """Imitate a detector of medium quality: half of its detections are near an object, the others anywhere."""
    rng = np.random.default_rng(seed)

    def random_boxes(count: int) -> np.ndarray:
        size = np.exp(rng.uniform(np.log(0.08), np.log(0.9), (count, 2)))
        corner = rng.random((count, 2)) * (1 - size)
        return np.concatenate([corner, corner + size], axis=1) * (WIDTH, HEIGHT, WIDTH, HEIGHT)

    # As in VOC, every image has an object, every third object is a person, and most objects of an image have the same
    # class.
    class_weights = np.array([9.0, *np.ones(NUM_CLASSES - 1)])
    class_weights /= class_weights.sum()
    object_images = np.concatenate([np.arange(NUM_IMAGES), rng.integers(0, NUM_IMAGES, NUM_OBJECTS - NUM_IMAGES)])
    main_class = rng.choice(NUM_CLASSES, NUM_IMAGES, p=class_weights) + 1
    any_class = rng.choice(NUM_CLASSES, NUM_OBJECTS, p=class_weights) + 1
    labels = np.where(rng.random(NUM_OBJECTS) < 0.7, main_class[object_images], any_class)
    object_boxes = random_boxes(NUM_OBJECTS)
    objects = ObjectRecords(object_images, labels, object_boxes.astype(np.float32), np.zeros(NUM_OBJECTS, dtype=bool))

    source = rng.integers(0, NUM_OBJECTS, NUM_DETECTIONS // 2)
    size = np.tile(object_boxes[source, 2:] - object_boxes[source, :2], 2)
    stray = np.abs(rng.normal(0, 0.1, len(source)))
    near = object_boxes[source] + rng.normal(0, 1, (len(source), 4)) * size * stray[:, None]
    near = np.concatenate([np.minimum(near[:, :2], near[:, 2:]), np.maximum(near[:, :2], near[:, 2:])], axis=1)
    num_far = NUM_DETECTIONS - len(source)
    detections = DetectionRecords(
        np.concatenate([object_images[source], rng.integers(0, NUM_IMAGES, num_far)]),
        np.concatenate([labels[source], rng.choice(NUM_CLASSES, num_far, p=class_weights) + 1]),
        np.concatenate([near, random_boxes(num_far)]).astype(np.float32),
        np.concatenate([np.exp(-8 * stray) * rng.random(len(source)) ** 0.3, rng.random(num_far) ** 3]),
    )
    order = rng.permutation(NUM_DETECTIONS)
    return select(detections, order), objects


def to_coco(records: DetectionRecords | ObjectRecords) -> list[dict]:
    boxes = records.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    columns = [records.image_ids.tolist(), records.labels.tolist(), boxes.tolist()]
    rows = [
        {"id": i + 1, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, (image, label, box) in enumerate(zip(*columns, strict=True))
    ]
    if isinstance(records, DetectionRecords):
        rows = [{**row, "score": score} for row, score in zip(rows, records.scores.tolist(), strict=True)]
    return rows


def index_coco(coco: type, detections: DetectionRecords, objects: ObjectRecords) -> tuple:
    truth = coco()
    truth.dataset = {
        "info": {},
        "images": [{"id": image, "width": WIDTH, "height": HEIGHT} for image in range(NUM_IMAGES)],
        "categories": [{"id": label, "name": str(label)} for label in range(1, NUM_CLASSES + 1)],
        "annotations": to_coco(objects),
    }
    truth.createIndex()
    return truth, truth.loadRes(to_coco(detections))


def evaluate_coco(evaluation: type, indices: tuple, whole_protocol: bool) -> float:
    """Compute AP50, the mean over classes."""
    run = evaluation(*indices, "bbox")
    if not whole_protocol:
        run.params.iouThrs = np.array([0.5])
        run.params.areaRng, run.params.areaRngLbl = run.params.areaRng[:1], run.params.areaRngLbl[:1]
    run.evaluate()
    run.accumulate()
    return float(run.eval["precision"][0, :, :, 0, -1].mean())


def evaluate_voc(detections: DetectionRecords, objects: ObjectRecords) -> float:
    voc12 = voc_average_precision(detections, objects, NUM_CLASSES)
    average_curves(voc12.curves, voc12.num_objects, "11-point")
    return voc12.mean


def average_precision_101_point(detections: DetectionRecords, objects: ObjectRecords) -> float:
    """Compute COCO's average of our curves."""
    levels = np.linspace(0, 1, 101)
    curves, _ = precision_recall_curves(detections, objects, NUM_CLASSES)
    return float(np.mean([np.max(c.precision[c.recall >= t], initial=0) for c in curves for t in levels]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="number of rounds; the median is shown")
    repeats = parser.parse_args().repeats
    if hasattr(os, "sched_setaffinity"):  # On Linux, all libraries get one core, however many threads they start.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    detections, objects = make_records()
    with contextlib.redirect_stdout(io.StringIO()):
        indices = index_coco(pycocotools.coco.COCO, detections, objects)
        faster_indices = index_coco(faster_coco_eval.COCO, detections, objects)
    reference, faster = pycocotools.cocoeval.COCOeval, faster_coco_eval.COCOeval_faster
    contestants: dict[str, Callable[[], float]] = {
        "ssd_lightning, VOC07 and VOC12": lambda: evaluate_voc(detections, objects),
        "faster-coco-eval, IoU 0.5 only": lambda: evaluate_coco(faster, faster_indices, whole_protocol=False),
        "faster-coco-eval, COCO": lambda: evaluate_coco(faster, faster_indices, whole_protocol=True),
        "pycocotools, IoU 0.5 only": lambda: evaluate_coco(reference, indices, whole_protocol=False),
        "pycocotools, COCO": lambda: evaluate_coco(reference, indices, whole_protocol=True),
    }

    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    scores: dict[str, float] = {}
    for _ in range(repeats):  # The contestants take turns, so that a busy machine disturbs all of them.
        for name, run in contestants.items():
            with contextlib.redirect_stdout(io.StringIO()):
                start = time.perf_counter()
                scores[name] = run()
                seconds[name].append(time.perf_counter() - start)

    # The speeds are comparable only for the same work. Both sides take the average of 101 points. But in
    # COCO a detection may match its second best object if the best one is taken.
    ours, theirs = average_precision_101_point(detections, objects), scores["pycocotools, IoU 0.5 only"]
    print(f"AP50 of the same curves, 101 points: ours {ours:.4f}, pycocotools {theirs:.4f}")
    if abs(ours - theirs) > 0.005:
        raise SystemExit("The scores differ by more than 0.005, so the times would not compare the same work.")

    fastest = statistics.median(seconds["ssd_lightning, VOC07 and VOC12"])
    print(f"{len(detections.labels)} detections and {len(objects.labels)} objects in {NUM_IMAGES} images")
    print(f"{'':32}{'seconds':>9}{'ratio':>8}{'AP50':>9}")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:32}{median:9.3f}{median / fastest:8.1f}{scores[name]:9.4f}")


if __name__ == "__main__":
    main()
