"""A tiny data set in the layout of d2l.ai's bananas, which tests write in milliseconds."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image


def write_banana_folder(root: Path, num_train: int = 12, num_val: int = 4, side: int = 256) -> Path:
    """Write ``bananas_train`` and ``bananas_val`` into ``root``, and return it.

    Every picture is grey noise with one yellow rectangle, whose sides are a quarter to a half of the picture. Its box
    is in ``label.csv``. The same arguments give the same files.
    """
    for split, count in (("bananas_train", num_train), ("bananas_val", num_val)):
        images = root / split / "images"
        images.mkdir(parents=True)
        rows: list[tuple[str, int, int, int, int, int]] = []
        for number in range(count):
            rng = np.random.default_rng([len(split), number])
            pixels = rng.integers(0, 160, (side, side, 1), dtype=np.uint8).repeat(3, axis=2)
            width, height = (int(value) for value in rng.integers(side // 4, side // 2, 2))
            left, top = int(rng.integers(side - width)), int(rng.integers(side - height))
            pixels[top : top + height, left : left + width] = (240, 220, 40)
            Image.fromarray(pixels).save(images / f"{number}.png", compress_level=1)
            rows.append((f"{number}.png", 0, left, top, left + width, top + height))
        with (root / split / "label.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("img_name", "label", "xmin", "ymin", "xmax", "ymax"), *rows])
    return root
