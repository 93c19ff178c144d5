"""Detection on a data set by ``ssd-evaluate`` and ``ssd-export``."""

import copy
from pathlib import Path

import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.progress import track

from ssd_lightning.cli.screen import screen
from ssd_lightning.cli.weights import chosen_weights, load_chosen, moved
from ssd_lightning.data.batches import scored_loader
from ssd_lightning.data.data_set import DetectionData, Pictures, TestedData, refuse_unusable
from ssd_lightning.deploy.detector import Detector
from ssd_lightning.deploy.onnx_detector import OnnxDetector
from ssd_lightning.devices import free_cores
from ssd_lightning.scoring.missed import why_missed
from ssd_lightning.scoring.scores import DetectionScores
from ssd_lightning.scoring.stored_detections import StoredDetections
from ssd_lightning.structures import Detections
from ssd_lightning.training.checkpoint import read_checkpoint, rebuild_part


def detect(config: DictConfig) -> tuple[StoredDetections, pd.DataFrame | None]:
    """Run a checkpoint or an exported file on a split of a data group.

    The default is the data of the checkpoint's training, which an exported file does not know.

    Returns:
        Its detections; and the reasons for missed objects, or None without ``why_missed``.
    """
    checkpoint = chosen_weights(config.checkpoint)
    # float32 on every machine, since a score must not depend on the machine.
    detector = moved(load_chosen(checkpoint, config), config.device)
    is_exported = isinstance(detector, OnnxDetector)
    if is_exported and not config.get("data"):
        raise ValueError(
            "data: expected the option of a data set with an exported file, got none. Try data=voc_folder."
        )
    if is_exported and config.why_missed:
        raise ValueError("why_missed: expected false with an exported file, got true. Try checkpoint=<run folder>.")
    pictures = open_pictures(config, detector, checkpoint)
    paths = tuple(str(path) for path in pictures.paths)
    scores = scores_of(detector, pictures, config)
    found = StoredDetections(scores.detections(), scores.objects(), paths, detector.classes)
    if isinstance(detector, OnnxDetector) or not config.why_missed:
        return found, None
    shown = copy.copy(detector.postprocess)
    shown.score_threshold = config.draw_threshold
    misses = why_missed(
        detector.model,
        shown,
        rebuild_part(read_checkpoint(checkpoint), "matcher", checkpoint, config.trusted_packages),
        pictures,
        found.detections,
        found.objects,
        config.iou_threshold,
    )
    misses.insert(0, "picture", [paths[image_id] for image_id in misses.pop("image_id")])
    misses.insert(1, "class", [detector.classes[label - 1] for label in misses.pop("label")])
    return found, misses


def open_pictures(config: DictConfig, detector: Detector | OnnxDetector, checkpoint: Path) -> Pictures:
    """Open the split of the data group, or of the data of a checkpoint's training.

    The data of a training are read, and neither generated nor downloaded: a checkpoint may come from another machine or
    person, and must not fill a folder that it names.

    Raises:
        ValueError: naming the key, if the data cannot be used, have other classes, or have no such split.
    """
    is_given = bool(config.get("data"))
    if is_given and "classes" in config.data and config.data.classes is None:
        # A folder of pictures can lack some of the classes.
        config.data.classes = list(detector.classes)
    data: DetectionData = (
        instantiate(config.data, _convert_="all")
        if is_given
        else rebuild_part(read_checkpoint(checkpoint), "data", checkpoint, config.trusted_packages)
    )
    if is_given:
        data.prepare()
    try:
        pictures = _split(data, config.split)
    except (ValueError, OSError) as error:
        if is_given:
            raise
        raise ValueError(
            f"data: expected the data of the training of {checkpoint}, got an error: {error}. "
            "Try data=<the option of a data set>."
        ) from error
    if tuple(data.classes) != detector.classes:
        raise ValueError(
            f"data: expected the classes of the checkpoint, {list(detector.classes)}, got {list(data.classes)}"
        )
    if pictures is None:
        raise ValueError(
            "split: expected val, got test, which this data does not have. "
            "Try data.test=<names>, or data.test_annotations=<file> with data=coco."
        )
    return pictures


def _split(data: DetectionData, split: str) -> Pictures | None:
    """Read the pictures of a split, or return None for a test that the data does not have."""
    pictures: Pictures | None
    if split == "val":
        purpose, pictures = "scoring", data.val()
    else:
        purpose, pictures = "the test", data.test() if isinstance(data, TestedData) else None
    if pictures is not None:
        refuse_unusable({purpose: pictures}, tuple(data.classes))
    return pictures


def scores_of(detector: Detector | OnnxDetector, pictures: Pictures, config: DictConfig) -> DetectionScores:
    """Run a detector on pictures, and collect what it finds beside the truth."""
    num_workers = free_cores() if config.num_workers is None else config.num_workers
    loader = scored_loader(pictures, detector.image_size, config.batch_size, detector.antialias, num_workers)
    scores = DetectionScores(len(detector.classes))
    for batch in track(loader, description="Detecting", console=screen(), transient=True):
        # The truth is on the host.
        scores.update(batch, Detections(*(column.cpu() for column in detector.run(batch.images))))
    return scores
