"""Train torchvision's SSDLite320 on MobileNetV2 by torchvision's own recipe, and score it with our evaluator.

    uv run python benchmarks/accuracy/torchvision_ssdlite.py <folder with VOCdevkit> <weights> <output folder>

Network, default boxes, matching, loss, post-processing and augmentation are torchvision's, and so are the settings of
its reference script for SSDLite320: preset ``ssdlite``, SGD with momentum 0.9 and weight decay 4e-5, a linear warm-up
over the first epoch, a cosine, and the learning rate 0.15 for 192 pictures in a step, scaled to the batch. Its training
runs through 660 epochs of COCO. This script has a smaller budget, which ``--pictures`` sets.

The weights are a state dict of torchvision's MobileNetV2, whose batch norms may be folded into the convolutions. With
``--batch-norms trained``, as in torchvision's recipe, such batch norms first get the statistics of some training
pictures, so that they normalize again and the outputs stay. With ``frozen`` they stay as the file has them. Without any
normalization this network does not learn by SGD: its features become equal for all pictures.

The output folder receives ``scores.json`` (settings, and the scores of each validation) and ``detections.npz``, which
``compare_runs`` compares with a run folder of ``ssd-train``.
"""

import argparse
import json
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.datasets import VOCDetection
from torchvision.models import mobilenet_v2
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead, _extra_block, _normal_init
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms import v2

from ssd_lightning.data.formats.voc import VOC_CLASSES
from ssd_lightning.records import DetectionRecords, ObjectRecords
from ssd_lightning.scoring import save_detections, score

Target = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder in which VOCdevkit/VOC2007 lies")
    parser.add_argument("weights", type=Path, help="state dict of torchvision's mobilenet_v2")
    parser.add_argument("output", type=Path)
    parser.add_argument("--train", default="train", help="list in ImageSets/Main to train on")
    parser.add_argument("--val", default="val", help="list in ImageSets/Main to score on")
    parser.add_argument("--first", type=int, help="train on this number of pictures from the start of the list")
    parser.add_argument("--pictures", type=int, default=60_000, help="number of pictures seen in training")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--batch-norms", choices=("frozen", "trained"), default="trained", help="of the backbone")
    parser.add_argument("--lr", type=float, help="default: 0.15 · batch / 192")
    parser.add_argument("--score-every", type=int, default=12_000, help="number of pictures between validations")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, help="threads of the network; default: torch's")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16 by autocast; scores are in float32")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.lr = arguments.lr or 0.15 * arguments.batch / 192
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)

    augmentation = v2.Compose([v2.RandomIoUCrop(), v2.RandomHorizontalFlip(0.5), v2.SanitizeBoundingBoxes()])
    training: Dataset[Any] = Pictures(arguments.data, arguments.train, augmentation)
    if arguments.first:
        training = Subset(training, range(arguments.first))
    validation = Pictures(arguments.data, arguments.val)
    loaders = {"batch_size": arguments.batch, "num_workers": arguments.workers, "collate_fn": list}
    train_loader = DataLoader(training, shuffle=True, drop_last=True, **loaders)
    val_loader = DataLoader(validation, **loaders)

    frozen = arguments.batch_norms == "frozen"
    model = ssdlite(arguments.image_size, arguments.weights, frozen).to(memory_format=torch.channels_last)
    if not frozen:
        samples = next(iter(DataLoader(training, 64, shuffle=True, collate_fn=list)))
        images, _ = model.transform([image for image, _ in samples])
        unfold_batch_norms(nn.Sequential(model.backbone.first, model.backbone.second), images.tensors)
    steps = arguments.pictures // arguments.batch
    warmup = min(1000, len(train_loader) - 1)
    optimizer = torch.optim.SGD(model.parameters(), arguments.lr, momentum=0.9, weight_decay=4e-5)
    schedules = [
        torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 1000, total_iters=warmup),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
    ]
    curve: list[dict[str, float]] = []
    seconds, scored = 0.0, 0
    for step, samples in enumerate(endless(train_loader)):
        start = time.perf_counter()
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
            losses = model([image for image, _ in samples], [target for _, target in samples])
        loss = torch.stack([value.float() for value in losses.values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for schedule in schedules:
            schedule.step()
        seconds += time.perf_counter() - start
        seen = (step + 1) * arguments.batch
        if seen // arguments.score_every > scored or step + 1 == steps:
            scored = seen // arguments.score_every
            curve.append(
                {
                    "pictures": seen,
                    "seconds": seconds,
                    "loss": loss.item(),
                    **scores(model, val_loader, arguments.output),
                }
            )
            settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
            content = {"settings": settings, "threads": torch.get_num_threads(), "validations": curve}
            (arguments.output / "scores.json").write_text(json.dumps(content, indent=2) + "\n")
            print(json.dumps(curve[-1]), flush=True)
        if step + 1 == steps:
            break
    torch.save(model.state_dict(), arguments.output / "weights.pth")


class Pictures(Dataset[tuple[Tensor, Target]]):
    """Pictures of VOC 2007 as floats in 0 … 1, with boxes in pixels."""

    def __init__(self, folder: Path, image_set: str, transform: v2.Transform | None = None) -> None:
        self.pictures = VOCDetection(folder, "2007", image_set)
        self.transform = transform
        self.to_float = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        picture, annotation = self.pictures[index]
        image = v2.functional.to_image(picture)
        objects = annotation["annotation"]["object"]
        edges = [[int(float(o["bndbox"][k])) for k in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
        # The file counts pixels from 1, and both ends belong to the box.
        boxes = torch.tensor(edges).float() - torch.tensor([1.0, 1, 0, 0])
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[-2:]),
            "labels": torch.tensor([VOC_CLASSES.index(o["name"]) + 1 for o in objects]),
            "difficult": torch.tensor([o["difficult"] == "1" for o in objects]),
            "image_id": torch.tensor(index),
        }
        if self.transform:
            image, target = self.transform(image, target)
        return self.to_float(image, target)


class Levels(nn.Module):
    """MobileNetV2 with torchvision's extra layers: six levels, the first after the expansion of the 14th block."""

    def __init__(self, weights: Path, norm: Any, frozen: bool) -> None:
        super().__init__()
        backbone = mobilenet_v2(norm_layer=FrozenBatchNorm2d if frozen else norm)
        backbone.load_state_dict(torch.load(weights, weights_only=True))
        blocks = backbone.features
        self.first = nn.Sequential(*blocks[:14], blocks[14].conv[0])
        self.second = nn.Sequential(*blocks[14].conv[1:], *blocks[15:])
        channels = [1280, 512, 256, 256, 128]
        self.extra = nn.ModuleList(_extra_block(ins, outs, norm) for ins, outs in pairwise(channels))
        _normal_init(self.extra)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels = [self.first(images)]
        for block in (self.second, *self.extra):
            levels.append(block(levels[-1]))
        return {str(level): features for level, features in enumerate(levels)}


@torch.no_grad()
def unfold_batch_norms(backbone: nn.Module, images: Tensor) -> None:
    """Give the batch norms the statistics of what they receive, and weights that keep the network's outputs.

    Batch norms that were folded into the convolutions then normalize again as the network is trained.
    """

    def calibrate(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), unbiased=False)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias.add_(scale * (mean - norm.running_mean))
        norm.weight.copy_(scale * (variance + norm.eps).sqrt())
        norm.running_mean, norm.running_var = mean, variance

    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(calibrate) for norm in norms]
    backbone.eval()(images)
    for hook in hooks:
        hook.remove()


def ssdlite(image_size: int, weights: Path, frozen: bool) -> SSD:
    """Build ``ssdlite320_mobilenet_v3_large`` of torchvision with another backbone."""
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    anchors = DefaultBoxGenerator([[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95)
    head = SSDLiteHead([576, 1280, 512, 256, 256, 128], anchors.num_anchors_per_location(), len(VOC_CLASSES) + 1, norm)
    return SSD(
        Levels(weights, norm, frozen),
        anchors,
        (image_size, image_size),
        len(VOC_CLASSES) + 1,
        head=head,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        score_thresh=0.001,
        nms_thresh=0.55,
        detections_per_img=300,
        topk_candidates=300,
    )


def endless(loader: DataLoader[Any]) -> Iterator[list[tuple[Tensor, Target]]]:
    while True:
        yield from loader


@torch.inference_mode()
def scores(model: SSD, loader: DataLoader[Any], output: Path) -> dict[str, float]:
    model.eval()
    found: list[DetectionRecords] = []
    truth: list[ObjectRecords] = []
    for samples in loader:
        results = model([image for image, _ in samples])
        for (_, target), result in zip(samples, results, strict=True):
            index = int(target["image_id"])
            boxes, labels, values = (result[key].numpy() for key in ("boxes", "labels", "scores"))
            found.append(DetectionRecords(np.full(len(boxes), index), labels, boxes, values))
            boxes, labels, difficult = (target[key].numpy() for key in ("boxes", "labels", "difficult"))
            truth.append(ObjectRecords(np.full(len(boxes), index), labels, boxes, difficult))
    detections = DetectionRecords(*map(np.concatenate, zip(*found, strict=True)))
    objects = ObjectRecords(*map(np.concatenate, zip(*truth, strict=True)))
    paths = loader.dataset.pictures.images  # type: ignore[attr-defined]
    save_detections(output / "detections.npz", detections, objects, paths, VOC_CLASSES)
    return score(detections, objects, len(VOC_CLASSES))


if __name__ == "__main__":
    main()
