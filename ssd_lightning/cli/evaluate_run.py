"""What ``ssd-evaluate`` does once its config is composed."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from ssd_lightning import review
from ssd_lightning.average_precision import average_curves, coco_average_precision, precision_recall_curves
from ssd_lightning.checkpoint import CONFIG_KEY, load_detector, read_checkpoint, rebuild
from ssd_lightning.data.datamodule import DetectionData, DetectionDataModule
from ssd_lightning.module import SSDModule
from ssd_lightning.structures import DetectionRecords, ObjectRecords
from ssd_lightning.visualize import draw_detections, save_figure


def evaluate(config: DictConfig) -> float:
    """Score a checkpoint on the validation pictures of a data group, by default of the one it was trained on."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    detector = load_detector(config.checkpoint, dict(config.postprocess))
    data: DetectionData = (
        instantiate(config.data, _convert_="all")
        if config.get("data")
        else rebuild(read_checkpoint(config.checkpoint)[CONFIG_KEY]["config"]["data"], config.checkpoint)
    )
    if tuple(data.classes) != detector.classes:
        raise ValueError(
            f"data: its classes {list(data.classes)} are not those of the checkpoint {list(detector.classes)}"
        )
    datamodule = DetectionDataModule(
        data, detector.model.image_size, batch_size=config.batch_size, num_workers=config.num_workers
    )
    datamodule.prepare_data()
    module = SSDModule(detector.model, postprocess=detector.postprocess)
    # In float32, whatever is fastest: a score must not depend on the machine.
    trainer = instantiate(
        config.trainer,
        precision=config.trainer.precision or "32-true",
        logger=False,
        enable_checkpointing=False,
        _convert_="all",
    )
    trainer.validate(module, datamodule, verbose=False)

    detections, objects = module.scores.detections(), module.scores.objects()
    table = score_by_class(detections, objects, detector.classes)
    assert datamodule.val_pictures is not None
    review.save_detections(
        folder / "detections.npz", detections, objects, datamodule.val_pictures.paths, detector.classes
    )
    table.to_csv(folder / "scores.csv")
    (folder / "scores.json").write_text(json.dumps(_as_json(table, config, len(datamodule.val_pictures)), indent=2))
    save_figure(
        draw_detections(datamodule.val_pictures, detections, objects, detector.classes),
        folder / "figures" / "detections.png",
    )
    console = Console()
    console.print(_rich(table))
    console.print(f"Results: {folder}", highlight=False, markup=False, soft_wrap=True)
    return float(table.loc["mean", "COCO AP50"])


def score_by_class(detections: DetectionRecords, objects: ObjectRecords, classes: tuple[str, ...]) -> pd.DataFrame:
    """All protocols, a row for each class and one for their mean; NaN for a class without objects."""
    curves, num_objects = precision_recall_curves(detections, objects, len(classes))
    coco = coco_average_precision(detections, objects, len(classes))
    voc07 = average_curves(curves, num_objects, "11-point")
    voc12 = average_curves(curves, num_objects, "area")
    table = pd.DataFrame(
        {
            "objects": num_objects,
            "VOC07 AP": voc07.average_precision,
            "VOC12 AP": voc12.average_precision,
            "COCO AP": coco["map_per_class"],
        },
        index=pd.Index(classes, name="class"),
    )
    mean = {"objects": num_objects.sum(), "VOC07 AP": voc07.mean, "VOC12 AP": voc12.mean, "COCO AP": coco["map"]}
    table.loc["mean"] = mean
    # COCO's other numbers are of all classes together.
    for column, key in COCO_COLUMNS.items():
        table[column] = np.where(table.index == "mean", coco[key], np.nan)
    return table.astype({"objects": int})


COCO_COLUMNS = {
    "COCO AP50": "map_50",
    "COCO AP75": "map_75",
    "COCO AP small": "map_small",
    "COCO AP medium": "map_medium",
    "COCO AP large": "map_large",
    "COCO AR100": "mar_100",
}


def _as_json(table: pd.DataFrame, config: DictConfig, pictures: int) -> dict[str, object]:
    scores = {name: {k: v for k, v in row.items() if v == v} for name, row in table.to_dict("index").items()}
    return {"checkpoint": str(config.checkpoint), "pictures": pictures, "scores": scores}


def _rich(table: pd.DataFrame) -> Table:
    printed = Table(title="Scores of the validation pictures")
    printed.add_column("class")
    for column in table.columns:
        printed.add_column(column, justify="right")
    for name, row in table.iterrows():
        cells = (str(int(v)) if c == "objects" else "" if v != v else f"{v:.3f}" for c, v in row.items())
        printed.add_row(str(name), *cells, style="bold" if name == "mean" else None)
    return printed
