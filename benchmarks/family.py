"""Print the table of detectors in the documentation: input, grids, default boxes, parameters, GMACs, speed on a CPU.

    uv run python benchmarks/family.py [model ...]

The table has a row for each file of ``conf/model`` or each given name, for 20 classes. GMACs are billions of
multiply-accumulates for one picture, counted by torch. Images/s is the median for batches of one picture in evaluation
mode and float32, without post-processing.
"""

import argparse
import statistics
import time

import torch

from ssd_lightning.deploy.benchmark import size_of
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.presets import build_model, model_names
from ssd_lightning.devices import keep_freed_memory

NUM_CLASSES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names of files in conf/model; default: all")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    names = arguments.models or model_names()
    keep_freed_memory()
    print("| `model=` | input | grids | default boxes | parameters | GMACs | images/s |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        model = build_model(name, NUM_CLASSES).eval().to(memory_format=torch.channels_last)
        height, width = model.image_size
        size = size_of(model)
        print(
            f"| `{name}` | {height}×{width} | {' '.join(str(rows) for rows, _ in model.grids)} "
            f"| {size.default_boxes} | {size.parameters / 1e6:.1f} M "
            f"| {size.multiplications / 1e9:.2f} | {images_per_second(model, arguments.repeats):.1f} |",
            flush=True,
        )


@torch.inference_mode()
def images_per_second(model: SSD, repeats: int) -> float:
    image = torch.randint(0, 256, (1, 3, *model.image_size), dtype=torch.uint8)
    image = image.to(memory_format=torch.channels_last)
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        model(image)
        seconds.append(time.perf_counter() - start)
    return 1 / statistics.median(seconds[2:])


if __name__ == "__main__":
    main()
