"""What ``ssd-check`` does once its config is composed."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ssd_lightning.box_design.coverage import best_ious, coverage_by_class, coverage_by_size, sides
from ssd_lightning.box_design.data_figures import draw_data_set
from ssd_lightning.cli.build import plain_values, refuse_what_tells_nothing, without_weights
from ssd_lightning.data.datamodule import DetectionData, DetectionDataModule
from ssd_lightning.data.formats.annotations import FIXED, AnnotatedPictures, Finding, check_objects, printable
from ssd_lightning.data.formats.coco import COCO
from ssd_lightning.data.formats.data_set_checks import (
    absent_classes,
    odd_names,
    read_contents,
    repeated_objects,
    same_pictures,
    undecodable,
)
from ssd_lightning.data.formats.voc import VOCPictures
from ssd_lightning.detector.model import SSD
from ssd_lightning.drawing import save_figure
from ssd_lightning.scoring.scores import score
from ssd_lightning.structures import DetectionRecords, ObjectRecords

MOST_SHOWN = 5
"""Of each kind on the terminal; the file has all."""

MOST_CLASSES = 20
"""Rows of the table on the terminal; the file has all."""


def check(config: DictConfig) -> None:
    """Read everything, and write a report.

    Raises:
        ValueError: if training would fail or be wrong.
    """
    if config.resume:
        raise ValueError(f"resume: {config.resume} is for ssd-train; a run that began has been checked")
    folder = Path(HydraConfig.get().runtime.output_dir)
    console = Console()
    data = instantiate(config.data, _convert_="all")
    data.prepare()
    fix = getattr(data, "fix", None)
    found = annotation_findings(data)
    if any(finding.kind not in FIXED[fix] for finding in found):
        # With what is right the rest can be looked at nevertheless.
        data = instantiate(config.data, _convert_="all", fix="skip")
    datamodule = DetectionDataModule(data, plain_values(config.model.image_size), config.batch_size, num_workers=0)
    try:
        datamodule.setup("fit")
        refuse_what_tells_nothing(datamodule)
    except ValueError:
        if not found:
            raise
        write_findings(folder / "findings.csv", found, [], [])
        _print(console, told("Problem", found))
        _fail(folder, found, data, "nothing is left without them")
    train, val = datamodule.train_pictures, datamodule.val_pictures
    if not (isinstance(train, AnnotatedPictures) and isinstance(val, AnnotatedPictures)):
        raise ValueError(f"data: expected AnnotatedPictures to look at, got {type(train).__name__}")
    contents = read_contents([*train.paths, *val.paths])
    in_both, twice = same_pictures(train, val, contents)
    found += undecodable(contents) + in_both + truth_scored(val, len(data.classes))
    remarks = [
        *absent_classes(train, data.classes),
        *odd_names(data.classes),
        *twice,
        *repeated_objects(train),
        *repeated_objects(val),
    ]
    problems = [finding for finding in found if finding.kind not in FIXED[fix]]
    fixed = [finding for finding in found if finding.kind in FIXED[fix]]
    write_findings(folder / "findings.csv", problems, fixed, remarks)

    with open_dict(config):
        config.model.num_classes = len(data.classes)
    model: SSD = instantiate(without_weights(plain_values(config.model)), _convert_="all")
    threshold = instantiate(config.matcher, _convert_="all").iou_threshold
    boxes, labels = np.concatenate((train.boxes, val.boxes)), np.concatenate((train.labels, val.labels))
    best = best_ious(boxes, model.default_boxes)
    by_class = coverage_by_class(labels, best, data.classes, threshold)
    by_size = coverage_by_size(sides(boxes, model.image_size), best, threshold)
    by_class.to_csv(folder / "classes.csv")
    by_size.to_csv(folder / "sizes.csv")
    save_figure(draw_data_set(train, val, data.classes, model, best, threshold), folder / "figures" / "data.png")

    console.print(
        f"{len(train)} pictures for training, {len(val)} for scoring; {len(labels)} objects of {len(data.classes)} "
        "classes",
        highlight=False,
    )
    model_name = HydraConfig.get().runtime.choices["model"]
    console.print(_table(_worst(by_class), f"Default boxes of {model_name}, and the objects", threshold))
    console.print(_table(by_size, "By size in the network's input", threshold))
    for name, findings in (("Problem", problems), (f"Left to fix={fix}", fixed), ("Remark", remarks)):
        _print(console, told(name, findings))
    console.print(f"Results: {folder} (look at figures/data.png)", highlight=False, markup=False, soft_wrap=True)
    if problems:
        _fail(folder, problems, data, "")
    console.print("Next:    ssd-train with the same arguments", highlight=False, markup=False)


def _print(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _fail(folder: Path, problems: list[Finding], data: DetectionData, more: str) -> NoReturn:
    text = f"{len(problems)} problems, all in {folder / 'findings.csv'}"
    raise ValueError("; ".join(part for part in (text, more, advice(problems, data)) if part))


def annotation_findings(data: DetectionData) -> list[Finding]:
    """What the annotations tell by themselves; nothing for data that is checked as it is read."""
    if not isinstance(data, VOCPictures | COCO):
        return []
    train, val, findings = data.annotations
    objects = [finding for part in (train, val) for finding in check_objects(part, data.classes)]
    return [*findings, *objects]


def truth_scored(pictures: AnnotatedPictures, num_classes: int) -> list[Finding]:
    """Detections that are the truth must be perfect."""
    image_ids = np.repeat(np.arange(len(pictures)), pictures.counts)
    boxes = pictures.boxes * np.tile(pictures.sizes[image_ids][:, ::-1], 2)
    objects = ObjectRecords(image_ids, pictures.labels, boxes, pictures.difficult)
    detections = DetectionRecords(image_ids, pictures.labels, boxes, np.ones(len(boxes), dtype=np.float32))
    scores = score(detections, objects, num_classes)
    wrong = {name: value for name, value in scores.items() if abs(value - 1) > 1e-6}
    return [
        Finding("scores", f"{name} of the truth itself: expected 1, got {value:g}") for name, value in wrong.items()
    ]


def write_findings(path: Path, problems: list[Finding], fixed: list[Finding], remarks: list[Finding]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(("what", "kind", "text"))
        for what, findings in (("problem", problems), ("fixed", fixed), ("remark", remarks)):
            writer.writerows((what, kind, text) for kind, text in findings)


def told(name: str, findings: list[Finding]) -> Iterator[str]:
    """The first of each kind, and how many there are."""
    by_kind = defaultdict(list)
    for kind, text in findings:
        by_kind[kind].append(printable(text))
    for kind, texts in by_kind.items():
        yield f"{name}, {kind}: {len(texts)}"
        yield from (f"  {text}" for text in texts[:MOST_SHOWN])
        if len(texts) > MOST_SHOWN:
            yield f"  … and {len(texts) - MOST_SHOWN} more"


def advice(problems: list[Finding], data: DetectionData) -> str:
    ways = [f"data.fix={way}" for way in ("clip", "skip") if all(kind in FIXED[way] for kind, _ in problems)]
    return f"{' or '.join(ways)} would deal with them" if ways and hasattr(data, "fix") else ""


def _worst(by_class: pd.DataFrame) -> pd.DataFrame:
    """All classes if they are few, else those that are reached least, and the last row, which is of all."""
    if len(by_class) <= MOST_CLASSES + 1:
        return by_class
    worst = by_class.iloc[:-1].nlargest(MOST_CLASSES, "unreached")
    return pd.concat([worst, by_class.iloc[-1:]])


def _table(coverage: pd.DataFrame, title: str, threshold: float) -> Table:
    table = Table(title=title)
    table.add_column(str(coverage.index.name))
    for column in ("objects", f"no IoU of {threshold:g}", "mean best IoU"):
        table.add_column(column, justify="right")
    for name, (objects, unreached, best) in coverage.iterrows():
        shares = ("", "") if unreached != unreached else (f"{unreached:.1%}", f"{best:.2f}")
        table.add_row(escape(str(name)), str(int(objects)), *shares, style="bold" if name == "all" else None)
    return table
