"""What ``ssd-boxes`` does once its config is composed."""

import functools
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from jaxtyping import Int
from omegaconf import DictConfig, open_dict
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from ssd_lightning.box_design.coverage import (
    ObjectMatches,
    augmented,
    coverage_by_class,
    coverage_by_level,
    coverage_by_shape,
    coverage_by_size,
    match_objects,
    shapes,
    sharing_pictures,
    sides,
)
from ssd_lightning.box_design.coverage_figures import Laid, draw_coverage, draw_design
from ssd_lightning.box_design.search import BoxShapes, design_boxes
from ssd_lightning.cli.build import build_datamodule, plain_values, without_weights
from ssd_lightning.data.formats.annotations import AnnotatedPictures
from ssd_lightning.detector.default_boxes import DefaultBoxes, Grid
from ssd_lightning.detector.matching import BoxMatcher
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.presets import CONFIG_FOLDER
from ssd_lightning.drawing import save_figure
from ssd_lightning.require import require_number

MOST_CLASSES = 20
"""Rows of a table on the terminal; the file has all."""

FORMATS = {
    "reached": "{:.1%}",
    "present": "{:.1%}",
    "designed": "{:.1%}",
    "gain": "{:+.1%}",
    "claim alone": "{:.1%}",
    "shared best": "{:.1%}",
    "mean best IoU": "{:.3f}",
    "positives": "{:.1f}",
    "per picture": "{:.2f}",
}
"""Of columns that are no counts."""

NOT_OF_TRAINING = (
    "augmented",
    "least_reached",
    "design",
    "boxes_budget",
    "design_name",
    "box_scales",
    "aspect_ratios",
    "model.default_boxes.scales",
    "model.default_boxes.aspect_ratios",
)
"""Keys of arguments."""


class Subject(NamedTuple):
    """What is looked at: pictures, and what is laid over them."""

    train: AnnotatedPictures
    """As they are or, if that was asked for, as augmentation shows them."""
    val: AnnotatedPictures
    classes: tuple[str, ...]
    present: DefaultBoxes
    grids: list[Grid]
    image_size: tuple[int, int]
    matcher: BoxMatcher
    told: str
    """In words."""

    def boxes_of_level(self, default_boxes: DefaultBoxes) -> list[int]:
        cells = [rows * columns for rows, columns in self.grids]
        return [number * each for number, each in zip(cells, default_boxes.boxes_per_cell, strict=True)]

    def match(self, pictures: AnnotatedPictures, default_boxes: DefaultBoxes) -> ObjectMatches:
        laid = default_boxes(self.grids, self.image_size)
        return match_objects(pictures.boxes, pictures.counts, laid, self.boxes_of_level(default_boxes), self.matcher)

    def tables(self, matches: ObjectMatches) -> dict[str, pd.DataFrame]:
        """What is reached of the training objects, by class, by size and by shape."""
        boxes, best, threshold = self.train.boxes, matches.best_iou, self.matcher.iou_threshold
        more = {"positives": matches.positives.sum(axis=1), "claim alone": matches.by_claim_alone}
        tables = {
            "classes": coverage_by_class(self.train.labels, best, self.classes, threshold, more),
            "sizes": coverage_by_size(sides(boxes, self.image_size), best, threshold, more),
            "shapes": coverage_by_shape(shapes(boxes, self.image_size), best, threshold, more),
        }
        for table in tables.values():
            table.insert(1, "reached", 1 - table.pop("unreached"))
        return tables


def cover(config: DictConfig) -> None:
    """Tables and a figure of what the default boxes reach; an error if that is too little."""
    folder, console, subject = _begin(config)
    train, threshold = subject.train, subject.matcher.iou_threshold
    matches = subject.match(train, subject.present)
    tables = subject.tables(matches)
    levels = coverage_by_level(matches, subject.grids, subject.boxes_of_level(subject.present), len(train))
    for name, table in {**tables, "levels": levels}.items():
        table.to_csv(folder / f"{name}.csv")
    laid = Laid(subject.present.shapes(), matches)
    figure = draw_coverage(train.boxes, train.labels, subject.classes, laid, subject.image_size, threshold)
    save_figure(figure, folder / "figures" / "coverage.png")

    for table in (_worst(tables["classes"], "reached"), tables["sizes"], tables["shapes"], levels):
        console.print(_table(table, f"By {table.index.name}", threshold))
    sharing = sharing_pictures(matches, train.counts)
    _tell(console, f"Pictures where two objects have the same best default box: {sharing.sum()} ({sharing.mean():.1%})")
    untrained = int((matches.positives.sum(axis=1) == 0).sum())
    if untrained:
        _tell(console, f"Objects that no default box is trained on, since others took all of theirs: {untrained}")
    _tell(console, f"Results: {folder} (look at figures/coverage.png)")
    _require(config.least_reached, tables["classes"]["reached"].iloc[-1])
    _tell(console, "Next:    ssd-boxes design with the same arguments looks for better ones")


def design(config: DictConfig) -> None:
    """Search, write what is found as options that ``ssd-train`` takes, and compare it with what there is."""
    _check_design(config)
    folder, console, subject = _begin(config)
    present, train, threshold = subject.present, subject.train, subject.matcher.iou_threshold
    found = design_boxes(
        train.boxes,
        present,
        subject.grids,
        subject.image_size,
        config.boxes_budget,
        threshold,
        config.seed,
        functools.partial(track, description="Searching", console=console, transient=True),
    )
    sets = {"present": present, "designed": found.default_boxes(present)}
    of_train = {name: subject.match(train, boxes) for name, boxes in sets.items()}
    of_val = {name: subject.match(subject.val, boxes) for name, boxes in sets.items()}
    summary = pd.DataFrame.from_dict(
        {
            f"{what}, {name}": {
                "default boxes": sum(subject.boxes_of_level(boxes)),
                **_summary(matches[name], pictures.counts, threshold),
            }
            for what, pictures, matches in (("training", train, of_train), ("scoring", subject.val, of_val))
            for name, boxes in sets.items()
        },
        orient="index",
    ).astype({"default boxes": int, "objects": int})
    summary.rename_axis("pictures, boxes").to_csv(folder / "design.csv")
    tables = {
        name: _compared(table, subject.tables(of_train["designed"])[name])
        for name, table in subject.tables(of_train["present"]).items()
    }
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv")
    reached = float(summary.loc["training, designed", "reached"])
    options, name = folder / "conf", config.design_name
    found.write(options, name, f"Found by ssd-boxes design: reaches {reached:.1%} of {subject.told}.")
    laid = [Laid(boxes.shapes(), of_train[name]) for name, boxes in sets.items()]
    val_best = of_val["present"].best_iou, of_val["designed"].best_iou
    figure = draw_design(train.boxes, laid[0], laid[1], val_best, subject.image_size, threshold)
    save_figure(figure, folder / "figures" / "design.png")

    for table in (_worst(tables["classes"], "present"), tables["sizes"], tables["shapes"]):
        console.print(_table(table, f"Reached at IoU {threshold:g}, by {table.index.name}", threshold))
    console.print(_transposed(summary, f"Default boxes, and the objects they reach at IoU {threshold:g}"))
    if found == BoxShapes.of(present):
        _tell(console, "Nothing better was found than what there is.")
    _tell(console, f"Results: {folder} (look at figures/design.png)")
    _require(config.least_reached, reached)
    arguments = ["--config-dir", str(options), *_of_training(), f"box_scales={name}", f"aspect_ratios={name}"]
    _tell(console, f"Next:    ssd-train {shlex.join(arguments)}")


def _of_training() -> list[str]:
    """The arguments that ``ssd-train`` takes too, but for those that say what is designed."""
    arguments = HydraConfig.get().overrides.task
    return [
        argument
        for argument in arguments
        if not any(re.match(rf"[+~]*{re.escape(key)}\b", argument) for key in NOT_OF_TRAINING)
    ]


def _begin(config: DictConfig) -> tuple[Path, Console, Subject]:
    if config.resume:
        raise ValueError(f"resume: {config.resume} is for ssd-train; a run goes on with the default boxes that it has")
    if config.least_reached is not None:
        require_number("least_reached", config.least_reached, "[0, 1]")
    datamodule = build_datamodule(config)
    train, val = datamodule.train_pictures, datamodule.val_pictures
    if not (isinstance(train, AnnotatedPictures) and isinstance(val, AnnotatedPictures)):
        raise ValueError(f"data: expected AnnotatedPictures to look at, got {type(train).__name__}")
    choices = HydraConfig.get().runtime.choices
    how = ""
    if config.augmented:
        train = augmented(train, datamodule.augmentation, config.seed)
        how = f" as augmentation={choices['augmentation']} shows them"
    if len(train.labels) == 0:
        raise ValueError("data: expected at least one object in the training pictures, got none")
    with open_dict(config):
        config.model.num_classes = len(datamodule.classes)
    plain = without_weights(plain_values(config.model))
    model: SSD = instantiate(plain, _convert_="all")
    told = (
        f"{len(train.labels)} objects of {len(datamodule.classes)} classes in {len(train)} training pictures{how}, "
        f"model={choices['model']}"
    )
    console = Console()
    _tell(console, f"{told}: {len(model.default_boxes)} default boxes")
    subject = Subject(
        train,
        val,
        datamodule.classes,
        instantiate(plain["default_boxes"], _convert_="all"),
        model.grids,
        model.image_size,
        instantiate(config.matcher, _convert_="all"),
        told,
    )
    return Path(HydraConfig.get().runtime.output_dir), console, subject


def _check_design(config: DictConfig) -> None:
    name, budget = str(config.design_name), config.boxes_budget
    if not re.fullmatch(r"[A-Za-z][\w-]*", name, flags=re.ASCII):
        raise ValueError(f"design_name: expected letters, digits, _ and -, a letter first, got {name!r}")
    for group in ("box_scales", "aspect_ratios"):
        if (CONFIG_FOLDER / group / f"{name}.yaml").exists():
            raise ValueError(f"design_name: expected a name that is no option of {group}, got {name!r}")
    if budget is not None and not isinstance(budget, int):
        raise ValueError(f"boxes_budget: expected a whole number or null, got {budget}")


def _require(least: float | None, reached: float) -> None:
    """Raises: ValueError: if too few objects are reached."""
    if least is not None and reached < least:
        raise ValueError(f"least_reached: expected {least:.2%} of the objects or more, {reached:.2%} are reached")


def _summary(matches: ObjectMatches, counts: Int[np.ndarray, " pictures"], threshold: float) -> dict[str, float]:
    columns = {
        "reached": matches.best_iou >= threshold,
        "mean best IoU": matches.best_iou,
        "positives": matches.positives.sum(axis=1),
        "claim alone": matches.by_claim_alone,
        "shared best": sharing_pictures(matches, counts),
    }
    means = {name: float(np.mean(values)) if len(values) else np.nan for name, values in columns.items()}
    return {"objects": len(matches.best_iou), **means}


def _compared(present: pd.DataFrame, designed: pd.DataFrame) -> pd.DataFrame:
    """The shares that are reached, side by side."""
    shares = {"present": present["reached"], "designed": designed["reached"]}
    gain = shares["designed"] - shares["present"]
    return pd.DataFrame({"objects": present["objects"], **shares, "gain": gain}).rename_axis(present.index.name)


def _worst(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """All rows if they are few, else those with the least in a column, and the last one, which is of all."""
    if len(table) <= MOST_CLASSES + 1:
        return table
    return pd.concat([table.iloc[:-1].nsmallest(MOST_CLASSES, column), table.iloc[-1:]])


def _table(content: pd.DataFrame, title: str, threshold: float) -> Table:
    table = Table(title=title)
    table.add_column(str(content.index.name))
    for column in content.columns:
        table.add_column(f"IoU ≥ {threshold:g}" if column == "reached" else column, justify="right")
    for name, row in zip(content.index, _cells(content), strict=True):
        table.add_row(escape(str(name)), *row, style="bold" if name == "all" else None)
    return table


def _transposed(content: pd.DataFrame, title: str) -> Table:
    """A line for each column, since these are more than the rows."""
    table = Table(title=title)
    for name in ("", *content.index):
        table.add_column(name, justify="right" if name else "left")
    for column, cells in zip(content.columns, zip(*_cells(content), strict=True), strict=True):
        table.add_row(column, *cells)
    return table


def _cells(content: pd.DataFrame) -> list[list[str]]:
    """Of each row. Whole numbers are counts, whatever their column is called; what is not known is left empty."""

    def cell(column: str, value: str | float) -> str:
        if value != value:
            return ""
        return FORMATS[column].format(value) if isinstance(value, float) else str(value)

    return [
        [cell(column, value) for column, value in zip(content.columns, row, strict=True)]
        for row in content.itertuples(index=False)
    ]


def _tell(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
