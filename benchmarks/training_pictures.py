"""Compare the paper's augmentation of training pictures to 300×300 with torchvision's, from files on one core.

    uv run python benchmarks/training_pictures.py <folder of VOC, with JPEGImages and Annotations>

torchvision's side has the steps of its reference training of SSD300: photometric distortion, zoom-out, IoU crop, flip,
and the resize of its model. Both sides read the same files to a uint8 picture with its boxes. They take turns in one
process, and medians are compared. Our side is timed with and without decoding large JPEG files at a reduced size.
"""

import argparse
import statistics
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.io import decode_jpeg, read_file
from torchvision.transforms import v2

from ssd_lightning.data.augmentation.colours import PhotometricDistortion
from ssd_lightning.data.augmentation.pipeline import FILL, Augmentation
from ssd_lightning.data.augmentation.windows import MinIoUCrop, ZoomOut
from ssd_lightning.data.pictures import read_picture
from ssd_lightning.records import Sample, Truth

SIZE = (300, 300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder with JPEGImages and Annotations")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted((arguments.folder / "JPEGImages").glob("*.jpg"))[: arguments.pictures]
    if not paths:
        parser.error(f"folder: expected JPEGImages/*.jpg in it, got {arguments.folder}")
    truths = [read_truth(arguments.folder / "Annotations" / f"{path.stem}.xml") for path in paths]

    sides: dict[str, Callable[[Path, Truth], object]] = {
        "torchvision": torchvision_sample,
        "ours": our_sample,
        "ours, decoded in full": our_sample_decoded_in_full,
        "decoding alone, torchvision": lambda path, truth: decode_jpeg(read_file(str(path))),
        "decoding alone, Pillow": lambda path, truth: read_picture(path),
    }
    torch.manual_seed(0)
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            for path, truth in zip(paths, truths, strict=True):
                side(path, truth)
            speeds[name].append(len(paths) / (time.perf_counter() - start))
    medians = {name: statistics.median(measured) for name, measured in speeds.items()}
    print(f"{len(paths)} pictures, median of {arguments.rounds} rounds on one core")
    for name, speed in medians.items():
        print(f"{name:<30} {speed:7.1f} images/s   {speed / medians['torchvision']:5.1f} times torchvision")


def read_truth(path: Path) -> Truth:
    root = ElementTree.parse(path).getroot()
    height, width = (int(root.findtext(f"size/{side}", "")) for side in ("height", "width"))
    pixels = [
        [float(entry.findtext(f"bndbox/{edge}", "")) for edge in ("xmin", "ymin", "xmax", "ymax")]
        for entry in root.findall("object")
    ]
    # Pixels count from 1, and the last pixel is part of the box.
    boxes = (np.array(pixels).reshape(-1, 4) - (1, 1, 0, 0)) / (width, height, width, height)
    labels = np.ones(len(boxes), dtype=np.int64)
    return Truth((height, width), boxes.astype(np.float32), labels, np.zeros(len(boxes), dtype=bool))


AUGMENTATION = Augmentation([ZoomOut(), MinIoUCrop()], horizontal_flip=0.5, colours=[PhotometricDistortion()])
RNG = np.random.default_rng(0)


def our_sample(path: Path, truth: Truth) -> Sample:
    view = AUGMENTATION.plan(truth, RNG)
    return AUGMENTATION.show(read_picture(path, view.least_size(SIZE)), truth, view, SIZE, RNG)


def our_sample_decoded_in_full(path: Path, truth: Truth) -> Sample:
    view = AUGMENTATION.plan(truth, RNG)
    return AUGMENTATION.show(read_picture(path), truth, view, SIZE, RNG)


TORCHVISION = v2.Compose(
    [
        v2.RandomPhotometricDistort(),
        v2.RandomZoomOut(fill=list(FILL)),
        v2.RandomIoUCrop(),
        v2.RandomHorizontalFlip(p=0.5),
        v2.Resize(SIZE, antialias=True),
        v2.SanitizeBoundingBoxes(),
    ]
)


def torchvision_sample(path: Path, truth: Truth) -> dict[str, torch.Tensor]:
    height, width = truth.size
    return TORCHVISION(
        {
            "image": tv_tensors.Image(decode_jpeg(read_file(str(path)))),
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy(truth.boxes * (width, height, width, height)), format="XYXY", canvas_size=truth.size
            ),
            "labels": torch.from_numpy(truth.labels),
        }
    )


if __name__ == "__main__":
    main()
