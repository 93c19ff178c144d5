"""Detection on a data set by ``ssd-evaluate`` and ``ssd-export``. They need Lightning only here."""

import copy
from pathlib import Path

import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig

from ssd_lightning.cli.build import quiet_lightning
from ssd_lightning.cli.weights import chosen_weights, load_chosen
from ssd_lightning.data.datamodule import DetectionData, DetectionDataModule
from ssd_lightning.deploy.detector import Detector
from ssd_lightning.deploy.onnx_detector import OnnxDetector
from ssd_lightning.scoring.missed import why_missed
from ssd_lightning.scoring.scores import DetectionScores
from ssd_lightning.scoring.stored_detections import StoredDetections
from ssd_lightning.training.checkpoint import read_checkpoint, rebuild_part
from ssd_lightning.training.module import SSDModule


def detect(config: DictConfig) -> tuple[StoredDetections, pd.DataFrame | None]:
    """Run a checkpoint or an exported file on a split of a data group.

    The default is the data of the checkpoint's training, which an exported file does not know.

    Returns:
        Its detections; and the reasons for missed objects, or None without ``why_missed``.
    """
    quiet_lightning()
    checkpoint = chosen_weights(config.checkpoint)
    detector = load_chosen(checkpoint, config)
    is_exported = isinstance(detector, OnnxDetector)
    if is_exported and not config.get("data"):
        raise ValueError(
            "data: expected the option of a data set with an exported file, got none. Try data=voc_folder."
        )
    if is_exported and config.why_missed:
        raise ValueError("why_missed: expected false with an exported file, got true. Try checkpoint=<run folder>.")
    datamodule = open_data(config, detector, checkpoint)
    is_test = config.split == "test"
    pictures = datamodule.test_pictures if is_test else datamodule.val_pictures
    assert pictures is not None
    paths = tuple(str(path) for path in pictures.paths)
    if isinstance(detector, OnnxDetector):
        scores = scores_of(detector, datamodule, is_test)
        return StoredDetections(scores.detections(), scores.objects(), paths, detector.classes), None
    module = SSDModule(detector.model, postprocess=detector.postprocess)
    # float32 on every machine, since a score must not depend on the machine.
    trainer = instantiate(
        config.trainer,
        precision=config.trainer.precision or "32-true",
        logger=False,
        enable_checkpointing=False,
        _convert_="all",
    )
    (trainer.test if is_test else trainer.validate)(module, datamodule, verbose=False)
    found = StoredDetections(module.scores.detections(), module.scores.objects(), paths, detector.classes)
    if not config.why_missed:
        return found, None
    shown = copy.copy(detector.postprocess)
    shown.score_threshold = config.draw_threshold
    misses = why_missed(
        # Lightning moved the model back to the CPU.
        detector.model.eval().to(trainer.strategy.root_device),
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


def open_data(config: DictConfig, detector: Detector | OnnxDetector, checkpoint: Path) -> DetectionDataModule:
    """Open the split of the data group, or of the data of a checkpoint's training, at the input size of a detector.

    Raises:
        ValueError: naming the key, if the data cannot be used, have other classes, or have no such split.
    """
    if config.split not in ("val", "test"):
        raise ValueError(f"split: expected val or test, got {config.split}")
    if config.get("data") and "classes" in config.data and config.data.classes is None:
        # A folder of pictures can lack some of the classes.
        config.data.classes = list(detector.classes)
    data: DetectionData = (
        instantiate(config.data, _convert_="all")
        if config.get("data")
        else rebuild_part(read_checkpoint(checkpoint), "data", checkpoint, config.trusted_packages)
    )
    datamodule = (DetectionDataModule if config.get("data") else DataOfTraining)(
        data,
        detector.image_size,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        antialias=detector.antialias,
    )
    datamodule.prepare_data()
    try:
        datamodule.setup("test" if config.split == "test" else "validate")
    except (ValueError, OSError) as error:
        if config.get("data"):
            raise
        raise ValueError(
            f"data: expected the data of the training of {checkpoint}, got an error: {error}. "
            "Try data=<the option of a data set>."
        ) from error
    if datamodule.classes != detector.classes:
        raise ValueError(
            f"data: expected the classes of the checkpoint, {list(detector.classes)}, got {list(datamodule.classes)}"
        )
    if config.split == "test" and datamodule.test_pictures is None:
        raise ValueError(
            "split: expected val, got test, which this data does not have. "
            "Try data.test=<names>, or data.test_annotations=<file> with data=coco."
        )
    return datamodule


def scores_of(detector: Detector | OnnxDetector, datamodule: DetectionDataModule, is_test: bool) -> DetectionScores:
    """Run a detector on the pictures of the validation, or of the test, in this process."""
    scores = DetectionScores(len(detector.classes))
    for batch in datamodule.test_dataloader() if is_test else datamodule.val_dataloader():
        scores.update(batch, detector.run(batch.images))
    return scores


class DataOfTraining(DetectionDataModule):
    """The data that a checkpoint names, which are read, and neither generated nor downloaded.

    A checkpoint may come from another machine or person, and must not fill a folder that it names.
    """

    def prepare_data(self) -> None:
        """Do nothing."""
