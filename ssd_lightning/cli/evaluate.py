"""The command ``ssd-evaluate``, after its config is composed."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from jaxtyping import UInt8
from omegaconf import DictConfig
from rich.table import Table

from ssd_lightning.cli.screen import screen
from ssd_lightning.data.pictures import picture_size, read_picture
from ssd_lightning.drawing import draw_detections, save_figure
from ssd_lightning.records import Sample, Truth, select
from ssd_lightning.require import counted, require_number, require_whole_number
from ssd_lightning.run_folder import replace_text
from ssd_lightning.scoring.average_precision import voc_columns
from ssd_lightning.scoring.csv_tables import write_table
from ssd_lightning.scoring.error_figures import draw_worst_pictures
from ssd_lightning.scoring.missed import REASONS
from ssd_lightning.scoring.run_report import write_report
from ssd_lightning.scoring.scores import coco_columns
from ssd_lightning.scoring.stored_detections import FILE_NAME, StoredDetections, load_detections, save_detections


def evaluate(config: DictConfig) -> float:
    """Score a checkpoint or stored detections, and fill the run folder.

    Returns:
        The AP at IoU 0.5.
    """
    _check(config)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if config.checkpoint is None:
        found, misses = load_detections(Path(config.detections).expanduser()), None
    else:
        from ssd_lightning.cli.detect import detect

        found, misses = detect(config)
    if config.score_threshold is not None:
        is_kept = found.detections.scores > config.score_threshold
        found = found._replace(detections=select(found.detections, is_kept))
    detections, objects, paths, classes = found
    table = write_report(
        folder,
        detections,
        objects,
        classes,
        config.iou_threshold,
        config.draw_threshold,
        config.coco_max_detections,
    )
    save_detections(folder / FILE_NAME, detections, objects, paths, classes)
    replace_text(folder / "scores.json", json.dumps(_as_json(table, config, len(paths)), indent=2) + "\n")
    pictures = StoredPictures(found)
    has_pictures = len(paths) > 0 and all(path.is_file() for path in pictures.paths)
    if has_pictures:
        thresholds = config.iou_threshold, config.draw_threshold
        for name, figure in (
            ("detections", draw_detections(pictures, detections, objects, classes, threshold=config.draw_threshold)),
            ("worst_pictures", draw_worst_pictures(pictures, detections, objects, classes, 9, *thresholds)),
        ):
            save_figure(figure, folder / "figures" / f"{name}.png")
    console = screen()
    voc = voc_columns(config.iou_threshold)
    console.print(_class_table(table[["objects", *voc, "COCO AP", "best F1", "best F1 at score"]], len(paths)))
    console.print(_coco_table(table, config.coco_max_detections))
    if misses is not None:
        write_table(misses, folder / "misses.csv", index=False)
        console.print(_reason_table(misses, config.draw_threshold))
    other = 0.75 if config.iou_threshold == 0.5 else 0.5
    for line in (
        *([] if has_pictures else ["The pictures cannot be found, so no detections are drawn."]),
        f"Results: {folder} (look at figures/confusion.png)",
        f"Next:    ssd-evaluate {shlex.quote(f'detections={folder}')} iou_threshold={other}",
    ):
        console.print(line, soft_wrap=True)
    return float(table["COCO AP50"].iloc[-1])


class StoredPictures:
    """The pictures of stored detections, with the truth that is stored beside the detections."""

    def __init__(self, stored: StoredDetections) -> None:
        self.paths = [Path(path) for path in stored.paths]
        self.objects = stored.objects

    def __len__(self) -> int:
        return len(self.paths)

    def truth(self, index: int) -> Truth:
        """Return the size of a picture and its objects."""
        # These pictures have been scored, so they are within the limit of their data set.
        height, width = picture_size(self.paths[index], math.inf)
        mine = self.objects.image_ids == index
        boxes = self.objects.boxes[mine] / np.array([width, height, width, height], dtype=np.float32)
        return Truth((height, width), boxes, self.objects.labels[mine], self.objects.difficult[mine])

    def image(self, index: int, least: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        """Decode a picture; see :func:`ssd_lightning.data.pictures.read_picture`."""
        return read_picture(self.paths[index], least, math.inf)

    def __getitem__(self, index: int) -> Sample:
        truth = self.truth(index)
        return Sample(self.image(index), truth.boxes, truth.labels, truth.difficult)


def _check(config: DictConfig) -> None:
    if (config.checkpoint is None) == (config.detections is None):
        given = "neither" if config.checkpoint is None else "both"
        raise ValueError(
            f"checkpoint, detections: expected one of checkpoint=<file> and detections=<run folder>, got {given}"
        )
    if config.detections is not None:
        for key in ("data", "postprocess", "why_missed", "split"):
            if config.get(key) and config[key] != "val":
                raise ValueError(
                    f"{key}: expected no value with detections=…, got {config[key]}. Try checkpoint=<file> instead."
                )
    if config.why_missed and config.draw_threshold == 1:
        raise ValueError(
            "draw_threshold: expected a number below 1 with why_missed=true, got 1. Try draw_threshold=0.5."
        )
    require_number("iou_threshold", config.iou_threshold, "(0, 1]")
    require_number("draw_threshold", config.draw_threshold, "[0, 1]")
    require_whole_number("coco_max_detections", config.coco_max_detections, 1)
    if config.score_threshold is not None:
        require_number("score_threshold", config.score_threshold, "[0, 1]")


def _as_json(table: pd.DataFrame, config: DictConfig, pictures: int) -> dict[str, Any]:
    rows = zip(table.index, table.to_dict("records"), strict=True)
    return {
        "checkpoint": config.checkpoint,
        "detections": config.detections,
        "split": config.split if config.detections is None else None,
        "iou_threshold": config.iou_threshold,
        "score_threshold": config.score_threshold,
        "coco_max_detections": config.coco_max_detections,
        "pictures": pictures,
        "scores": {name: {k: v for k, v in row.items() if v == v} for name, row in rows},
    }


def _class_table(table: pd.DataFrame, pictures: int) -> Table:
    printed = Table(title=f"Scores of {counted(pictures, 'picture')}")
    printed.add_column("class", overflow="fold")
    for column in table.columns:
        printed.add_column(column, justify="right")
    for place, (name, *row) in enumerate(table.itertuples(), start=1):
        cells = (str(int(v)) if c == "objects" else _cell(v) for c, v in zip(table.columns, row, strict=True))
        printed.add_row(str(name), *cells, style="bold" if place == len(table) else None)
    return printed


def _coco_table(table: pd.DataFrame, max_detections: int) -> Table:
    """Build a table of COCO's twelve figures, which are too many for one line."""
    printed = Table("score", title="COCO, all classes")
    printed.add_column("mean", justify="right")
    mean = table.iloc[-1]
    for column in coco_columns(max_detections):
        printed.add_row(column.removeprefix("COCO "), _cell(mean[column]))
    return printed


def _reason_table(misses: pd.DataFrame, threshold: float) -> Table:
    printed = Table(title=f"Reasons for missed objects, at a score of {threshold:g}")
    for column in ("reason", "objects", ""):
        printed.add_column(column, justify="right" if column == "objects" else "left")
    for reason, count in misses["reason"].value_counts().items():
        printed.add_row(str(reason), str(count), REASONS[str(reason)])
    return printed


def _cell(value: float) -> str:
    return "" if value != value else f"{value:.3f}"
