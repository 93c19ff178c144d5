"""The command ``ssd-boxes``: coverage of a data set by default boxes, and the search for better ones."""

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
    worst_classes,
)
from ssd_lightning.box_design.coverage_figures import MatchedBoxes, draw_coverage, draw_design
from ssd_lightning.box_design.search import design_boxes
from ssd_lightning.cli.build import build_datamodule
from ssd_lightning.cli.plain import plain_values, without_weights
from ssd_lightning.cli.screen import screen
from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures
from ssd_lightning.detector.default_boxes import DefaultBoxes, Grid
from ssd_lightning.detector.matching import BoxMatcher
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.presets import CONFIG_FOLDER
from ssd_lightning.drawing import save_figure
from ssd_lightning.require import counted, require_number
from ssd_lightning.scoring.csv_tables import write_table

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
"""Formats of the columns that are not counts."""

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
"""Keys of arguments that the suggested ``ssd-train`` command leaves out."""


LEAST_GAIN = 0.0005
"""Gain in the share of reached objects from which a design is recommended; less is shown as +0.0%."""

LEAST_LARGEST = 0.75
"""Side of the largest designed box, as a share of the largest present one, below which a design has a warning."""


class Inputs(NamedTuple):
    """The pictures and the default boxes to examine."""

    train: AnnotatedPictures
    """Training annotations, augmented with ``augmented=true``."""
    val: AnnotatedPictures
    classes: tuple[str, ...]
    present: DefaultBoxes
    grids: list[Grid]
    image_size: tuple[int, int]
    matcher: BoxMatcher
    summary: str
    """One sentence for the terminal and for the written configs."""

    def boxes_of_level(self, default_boxes: DefaultBoxes) -> list[int]:
        """Return the number of default boxes on each level."""
        cells = [rows * columns for rows, columns in self.grids]
        return [number * each for number, each in zip(cells, default_boxes.boxes_per_cell, strict=True)]

    def largest_side(self, default_boxes: DefaultBoxes) -> float:
        """Return the side of a square as large as the largest default box, in pixels."""
        sizes = default_boxes(self.grids, self.image_size)[:, 2:].prod(dim=1)
        return float((sizes.max() * self.image_size[0] * self.image_size[1]).sqrt())

    def match(self, pictures: AnnotatedPictures, default_boxes: DefaultBoxes) -> ObjectMatches:
        """Match the objects of all pictures to the default boxes."""
        boxes = default_boxes(self.grids, self.image_size)
        return match_objects(pictures.boxes, pictures.counts, boxes, self.boxes_of_level(default_boxes), self.matcher)

    def tables(self, matches: ObjectMatches) -> dict[str, pd.DataFrame]:
        """Tabulate the reached training objects by class, by size and by shape."""
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
    """Report the coverage of the training objects, as tables and a figure.

    Raises:
        ValueError: if fewer objects are reached than ``least_reached`` requires.
    """
    folder, console, inputs = _begin(config)
    train, threshold = inputs.train, inputs.matcher.iou_threshold
    matches = inputs.match(train, inputs.present)
    tables = inputs.tables(matches)
    levels = coverage_by_level(matches, inputs.grids, inputs.boxes_of_level(inputs.present), len(train))
    for name, table in {**tables, "levels": levels}.items():
        write_table(table, folder / f"{name}.csv")
    matched = MatchedBoxes(inputs.present.shapes(), matches)
    figure = draw_coverage(train.boxes, train.labels, inputs.classes, matched, inputs.image_size, threshold)
    save_figure(figure, folder / "figures" / "coverage.png")

    classes = worst_classes(tables["classes"], tables["classes"]["reached"])
    for table in (classes, tables["sizes"], tables["shapes"], levels):
        console.print(_table(table, f"By {table.index.name}", threshold))
    sharing = sharing_pictures(matches, train.counts)
    _print(console, f"Pictures where two objects share their best default box: {sharing.sum()} ({sharing.mean():.1%})")
    untrained = int((matches.positives.sum(axis=1) == 0).sum())
    if untrained:
        _print(console, f"Objects without any positive, because other objects took their default boxes: {untrained}")
    _print(console, f"Results: {folder} (look at figures/coverage.png)")
    _require(config.least_reached, tables["classes"]["reached"].iloc[-1])
    _print(console, "Next:    ssd-boxes design with the same arguments searches for better default boxes")


def design(config: DictConfig) -> None:
    """Search for better default boxes, write them as config options, and compare them with the present ones.

    Raises:
        ValueError: if an argument is wrong, or if fewer objects are reached than ``least_reached`` requires.
    """
    _check_design(config)
    folder, console, inputs = _begin(config)
    present, train, threshold = inputs.present, inputs.train, inputs.matcher.iou_threshold
    found = design_boxes(
        train.boxes,
        present,
        inputs.grids,
        inputs.image_size,
        config.boxes_budget,
        threshold,
        config.seed,
        functools.partial(track, description="Searching", console=console, transient=True),
    )
    sets = {"present": present, "designed": found.default_boxes(present)}
    train_matches = {name: inputs.match(train, boxes) for name, boxes in sets.items()}
    val_matches = {name: inputs.match(inputs.val, boxes) for name, boxes in sets.items()}
    summary = pd.DataFrame.from_dict(
        {
            f"{what}, {name}": {
                "default boxes": sum(inputs.boxes_of_level(boxes)),
                **_summary(matches[name], pictures.counts, threshold),
            }
            for what, pictures, matches in (("training", train, train_matches), ("scoring", inputs.val, val_matches))
            for name, boxes in sets.items()
        },
        orient="index",
    ).astype({"default boxes": int, "objects": int})
    write_table(summary.rename_axis("pictures, boxes"), folder / "design.csv")
    tables = {
        name: _compared(table, inputs.tables(train_matches["designed"])[name])
        for name, table in inputs.tables(train_matches["present"]).items()
    }
    for name, table in tables.items():
        write_table(table, folder / f"{name}.csv")
    reached = float(summary.loc["training, designed", "reached"])
    options, name = folder / "conf", config.design_name
    found.write(options, name, f"Found by ssd-boxes design: reaches {reached:.1%} of {inputs.summary}.")
    matched = [MatchedBoxes(boxes.shapes(), train_matches[name]) for name, boxes in sets.items()]
    val_best = val_matches["present"].best_iou, val_matches["designed"].best_iou
    figure = draw_design(train.boxes, matched[0], matched[1], val_best, inputs.image_size, threshold)
    save_figure(figure, folder / "figures" / "design.png")

    for table in (worst_classes(tables["classes"], tables["classes"]["present"]), tables["sizes"], tables["shapes"]):
        console.print(_table(table, f"Reached at IoU {threshold:g}, by {table.index.name}", threshold))
    console.print(_transposed(summary, f"Default boxes, and the objects they reach at IoU {threshold:g}"))
    gain = reached - float(summary.loc["training, present", "reached"])
    counts = summary["default boxes"]
    # With a lower budget, the present default boxes are no choice.
    is_better = gain >= LEAST_GAIN or counts["training, present"] > (config.boxes_budget or np.inf)
    sides_of = [inputs.largest_side(boxes) for boxes in sets.values()]
    if is_better and sides_of[1] < LEAST_LARGEST * sides_of[0]:
        _print(
            console,
            f"Warning: the largest default box shrinks from {sides_of[0]:.0f} to {sides_of[1]:.0f} pixels (side of a "
            f"square as large; the input has {inputs.image_size[0]} x {inputs.image_size[1]}), as large training "
            "objects are rare. Larger objects in other pictures would be missed. Try augmented=true.",
        )
    if not is_better:
        _print(console, f"The search found nothing better than the present default boxes (gain {gain:+.1%}).")
    _print(console, f"Results: {folder} (look at figures/design.png)")
    _require(config.least_reached, reached)
    if not is_better:
        _print(console, "Next:    ssd-train with the present default boxes")
        return
    arguments = ["--config-dir", str(options), *_training_arguments(), f"box_scales={name}", f"aspect_ratios={name}"]
    _print(console, f"Next:    ssd-train {shlex.join(arguments)}")


def _training_arguments() -> list[str]:
    """Return the arguments for ``ssd-train``, without those that the design replaces."""
    arguments = HydraConfig.get().overrides.task
    return [
        argument
        for argument in arguments
        if not any(re.match(rf"[+~]*{re.escape(key)}\b", argument) for key in NOT_OF_TRAINING)
    ]


def _begin(config: DictConfig) -> tuple[Path, Console, Inputs]:
    """Check the config, build what it names, and print the summary."""
    for key in ("resume", "resume_sweep"):
        if config[key] is not None:
            raise ValueError(f"{key}: expected null, got {config[key]}. Try ssd-train, which resumes a run.")
    if config.least_reached is not None:
        require_number("least_reached", config.least_reached, "[0, 1]")
    datamodule = build_datamodule(config)
    train, val = datamodule.train_pictures, datamodule.val_pictures
    if not (isinstance(train, AnnotatedPictures) and isinstance(val, AnnotatedPictures)):
        raise ValueError(f"data: expected AnnotatedPictures, got {type(train).__name__}")
    choices = HydraConfig.get().runtime.choices
    view = ""
    if config.augmented:
        train = augmented(train, datamodule.augmentation, config.seed)
        view = f" as augmentation={choices['augmentation']} shows them"
    if len(train.labels) == 0:
        raise ValueError("data: expected at least one object in the training pictures, got none")
    with open_dict(config):
        config.model.num_classes = len(datamodule.classes)
    plain = without_weights(plain_values(config.model))
    model: SSD = instantiate(plain, _convert_="all")
    summary = (
        f"{counted(len(train.labels), 'object')} of {counted(len(datamodule.classes), 'class', 'classes')} in "
        f"{counted(len(train), 'training picture')}{view}, "
        f"model={choices['model']}"
    )
    console = screen()
    _print(console, f"{summary}: {counted(len(model.default_boxes), 'default box', 'default boxes')}")
    inputs = Inputs(
        train,
        val,
        datamodule.classes,
        instantiate(plain["default_boxes"], _convert_="all"),
        model.grids,
        model.image_size,
        instantiate(config.matcher, _convert_="all"),
        summary,
    )
    return Path(HydraConfig.get().runtime.output_dir), console, inputs


def _check_design(config: DictConfig) -> None:
    """Check the arguments of a design before the data is read."""
    name, budget = str(config.design_name), config.boxes_budget
    if not re.fullmatch(r"[A-Za-z][\w-]*", name, flags=re.ASCII):
        raise ValueError(f"design_name: expected a letter, then letters, digits, _ and -, got {name!r}")
    for group in ("box_scales", "aspect_ratios"):
        if (CONFIG_FOLDER / group / f"{name}.yaml").exists():
            raise ValueError(f"design_name: expected a name that is not an option of {group}, got {name!r}")
    if budget is not None and not isinstance(budget, int):
        raise ValueError(f"boxes_budget: expected a whole number or null, got {budget}")


def _require(least: float | None, reached: float) -> None:
    """Raise ValueError if too few objects are reached."""
    if least is not None and reached < least:
        raise ValueError(f"least_reached: expected at least {least:.2%} of the objects reached, got {reached:.2%}")


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
    """Put the reached shares of both sets side by side."""
    shares = {"present": present["reached"], "designed": designed["reached"]}
    gain = shares["designed"] - shares["present"]
    return pd.DataFrame({"objects": present["objects"], **shares, "gain": gain}).rename_axis(present.index.name)


def _table(content: pd.DataFrame, title: str, threshold: float) -> Table:
    table = Table(title=title)
    table.add_column(str(content.index.name))
    for column in content.columns:
        table.add_column(f"IoU ≥ {threshold:g}" if column == "reached" else column, justify="right")
    for name, row in zip(content.index, _cells(content), strict=True):
        table.add_row(str(name), *row, style="bold" if name == "all" else None)
    return table


def _transposed(content: pd.DataFrame, title: str) -> Table:
    """Build a table with one line per column, because there are more columns than rows."""
    table = Table(title=title)
    for name in ("", *content.index):
        table.add_column(name, justify="right" if name else "left")
    for column, cells in zip(content.columns, zip(*_cells(content), strict=True), strict=True):
        table.add_row(column, *cells)
    return table


def _cells(content: pd.DataFrame) -> list[list[str]]:
    """Format all cells: floats by their column, counts and names as they are, and NaN as an empty cell."""

    def cell(column: str, value: str | float) -> str:
        if value != value:  # NaN.
            return ""
        return FORMATS[column].format(value) if isinstance(value, float) else str(value)

    return [
        [cell(column, value) for column, value in zip(content.columns, row, strict=True)]
        for row in content.itertuples(index=False)
    ]


def _print(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True)
