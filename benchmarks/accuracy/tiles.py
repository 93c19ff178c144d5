"""Measure what tiles of ``detector.predict`` find in large pictures: photographs of VOC, pasted side by side.

    uv run python benchmarks/accuracy/tiles.py <checkpoint> <folder with VOCdevkit>

Each canvas is grey, and has a number of rows and columns of cells of 500×500 pixels with one photograph each, at its
own size. AP50 is COCO's AP at IoU 0.5 over all objects. The first row of the table scores the photographs alone.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssd_lightning import DetectionDataModule, Detector, VOCFolder, load_detector
from ssd_lightning.records import DetectionRecords, ObjectRecords, Sample
from ssd_lightning.scoring import score

CELL = 500
"""The longest side of VOC's pictures."""

GREY = 114


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, help="folder in which VOCdevkit/VOC2007 lies")
    parser.add_argument("--pictures", type=int, help="number of photographs; default: all of the list")
    parser.add_argument("--cells", type=int, nargs="+", default=[2, 4], help="rows and columns of the canvases")
    parser.add_argument("--tiles", type=int, nargs="+", default=[1, 2, 4], help="rows and columns of the tiles")
    arguments = parser.parse_args()
    detector: Any = load_detector(arguments.checkpoint)
    data = DetectionDataModule(
        VOCFolder(arguments.folder / "VOCdevkit" / "VOC2007", classes=detector.classes, train="train", val="val"),
        detector.image_size,
        batch_size=1,
        num_workers=0,
    )
    data.setup("validate")
    pictures = data.val_pictures
    assert pictures is not None
    chosen = range(len(pictures))[: arguments.pictures]
    print("| canvas | tiles | runs of the network for a canvas | AP50 |\n|---|---|---|---|")
    alone = ap50(detector, (canvas([pictures[index]], 1) for index in chosen), 1)
    print(f"| one photograph | none | 1 | {alone:.3f} |", flush=True)
    for cells in arguments.cells:
        for tiles in arguments.tiles:
            parts = (chosen[first : first + cells * cells] for first in chosen[:: cells * cells])
            made = (canvas([pictures[index] for index in part], cells) for part in parts)
            found = ap50(detector, made, tiles)
            shown, runs = (f"{tiles}×{tiles}", 1 + tiles * tiles) if tiles > 1 else ("none", 1)
            print(f"| {cells}×{cells} photographs | {shown} | {runs} | {found:.3f} |", flush=True)


def canvas(samples: Sequence[Sample], cells: int) -> Sample:
    """Paste photographs onto a canvas, and return it with its objects, whose boxes are in pixels."""
    size = (cells * CELL, cells * CELL) if cells > 1 else samples[0].image.shape[:2]
    image = np.full((*size, 3), GREY, dtype=np.uint8)
    boxes = []
    for place, sample in enumerate(samples):
        height, width = sample.image.shape[:2]
        top, left = (CELL * number for number in divmod(place, cells))
        image[top : top + height, left : left + width] = sample.image
        boxes.append(sample.boxes * (width, height, width, height) + (left, top, left, top))
    labels, difficult = (np.concatenate([getattr(one, name) for one in samples]) for name in ("labels", "difficult"))
    return Sample(image, np.concatenate(boxes).astype(np.float32), labels, difficult)


def ap50(detector: Detector, canvases: Iterable[Sample], tiles: int) -> float:
    """Detect objects in canvases, and score all detections."""
    truth: list[Sample] = []

    def images() -> Iterator[np.ndarray]:
        for one in canvases:
            truth.append(one._replace(image=one.image[:0]))
            yield one.image

    found = list(detector.predict(images(), score_threshold=0.0, tiles=(tiles, tiles)))
    detections = DetectionRecords(
        numbers([len(one.scores) for one in found]),
        *(np.concatenate([np.asarray(getattr(one, name)) for one in found]) for name in ("labels", "boxes", "scores")),
    )
    objects = ObjectRecords(
        numbers([len(one.labels) for one in truth]),
        *(np.concatenate([getattr(one, name) for one in truth]) for name in ("labels", "boxes", "difficult")),
    )
    return score(detections, objects, len(detector.classes))["map_50"]


def numbers(counts: Sequence[int]) -> np.ndarray:
    """Return the number of its canvas for each row."""
    return np.repeat(np.arange(len(counts)), counts)


if __name__ == "__main__":
    main()
