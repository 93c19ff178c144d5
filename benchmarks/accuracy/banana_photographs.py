"""Count false alarms and found bananas of a banana detector on photographs, shrunk to the size of drawn bananas.

    uv run python benchmarks/accuracy/banana_photographs.py <checkpoint> <folder with train and test>

The photographs have VOC-style xml files. A detector of the default run knows bananas of one size. So each photograph
is shrunk until its fruit has the mean size of the drawn bananas, and is pasted onto a grey canvas of the network's
input size. A false alarm is a picture of oranges alone with a detection of at least the score 0.5. A banana counts as
found at an IoU of at least 0.5.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from ssd_lightning import DetectionDataModule, VOCFolder, load_detector

SIDE = 0.2
"""Mean side of the drawn bananas, as a share of the picture's side."""

GREY = (123, 117, 104)


class Placed(NamedTuple):
    picture: Image.Image
    names: list[str]
    boxes: np.ndarray
    """Edges (xyxy) in pixels of the canvas."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, help="the folder with the folders train and test")
    parser.add_argument("--score", type=float, default=0.5)
    arguments = parser.parse_args()
    detector = load_detector(arguments.checkpoint)
    canvas = detector.model.image_size[0]
    placed = list(photographs(arguments.folder, canvas))
    found = detector.predict([one.picture for one in placed], score_threshold=arguments.score)
    oranges = [len(f.boxes) > 0 for one, f in zip(placed, found, strict=True) if set(one.names) == {"orange"}]
    bananas = hits = 0
    for one, f in zip(placed, found, strict=True):
        truth = torch.tensor(one.boxes[[name == "banana" for name in one.names]]).float().reshape(-1, 4)
        bananas += len(truth)
        if len(truth) and len(f.boxes):
            hits += int((box_iou(truth, torch.as_tensor(f.boxes).float()).amax(dim=1) >= 0.5).sum())
    print(f"false alarms: {sum(oranges)} of {len(oranges)} pictures of oranges")
    print(f"found: {hits} of {bananas} bananas")


def photographs(folder: Path, canvas: int) -> Iterator[Placed]:
    data = DetectionDataModule(
        VOCFolder(folder, train="train", val="test", fix="clip"), canvas, batch_size=1, num_workers=0
    )
    data.setup("fit")
    pictures = data.val_pictures
    assert pictures is not None
    for sample in map(pictures.__getitem__, range(len(pictures))):
        height, width = sample.image.shape[:2]
        names = [data.classes[label - 1] for label in sample.labels]
        yield shrunk(Image.fromarray(sample.image), names, sample.boxes * [width, height, width, height], canvas)


def shrunk(picture: Image.Image, names: list[str], boxes: np.ndarray, canvas: int) -> Placed:
    side = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).mean()
    factor = SIDE * canvas / side
    size = [max(1, round(edge * factor)) for edge in picture.size]
    small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    left, top = ((canvas - edge) // 2 for edge in size)
    background = Image.new("RGB", (canvas, canvas), GREY)
    background.paste(small, (left, top))
    return Placed(background, names, boxes * factor + np.array([left, top, left, top]))


if __name__ == "__main__":
    main()
