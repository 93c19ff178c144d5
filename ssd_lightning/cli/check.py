"""The command ``ssd-check``: everything that can be wrong with a data set, before a run begins."""

import csv
import io
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
from rich.table import Table

from ssd_lightning.box_design.coverage import best_ious, coverage_by_class, coverage_by_size, sides, worst_classes
from ssd_lightning.box_design.data_figures import draw_data_set
from ssd_lightning.cli.plain import plain_values, without_weights
from ssd_lightning.cli.screen import screen
from ssd_lightning.data.data_set import (
    DetectionData,
    Pictures,
    TestedData,
    refuse_data_without_objects,
    refuse_unusable,
)
from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures
from ssd_lightning.data.formats.findings import FIXED, Finding, printable
from ssd_lightning.data.formats.picture_checks import (
    absent_classes,
    checked,
    odd_names,
    read_contents,
    repeated_objects,
    same_pictures,
    tiny_objects,
)
from ssd_lightning.data.formats.picture_page import choose_pictures, draw_pictures
from ssd_lightning.detector.model import SSD
from ssd_lightning.drawing import save_figure
from ssd_lightning.records import DetectionRecords, ObjectRecords
from ssd_lightning.require import counted
from ssd_lightning.run_folder import replace_text
from ssd_lightning.scoring.csv_tables import cell, write_table
from ssd_lightning.scoring.scores import MAX_DETECTIONS, score

MOST_SHOWN = 5
"""Number of findings of each kind on the terminal; the file has all."""


MOST_UNREACHED = 0.5
"""Share of objects without a default box above which default boxes should be designed before training."""


def check(config: DictConfig) -> None:
    """Read all data, check it, and write a report.

    Raises:
        ValueError: if the data has faults with which training would fail or be wrong.
    """
    for key in ("resume", "resume_sweep"):
        if config[key] is not None:
            raise ValueError(
                f"{key}: expected null, got {config[key]}. Try ssd-train: a run that began has been checked."
            )
    folder = Path(HydraConfig.get().runtime.output_dir)
    console = screen()
    data = instantiate(config.data, _convert_="all")
    data.prepare()
    classes = tuple(data.classes)
    read = {"training": data.train(), "scoring": data.val()}
    if isinstance(data, TestedData) and (test := data.test()) is not None:
        read["the test"] = test
    given = {purpose: _annotated(pictures) for purpose, pictures in read.items()}
    limit = given["training"].max_megapixels
    contents = read_contents([path for pictures in given.values() for path in pictures.paths], limit)
    in_both, twice = same_pictures(given, contents)
    splits: dict[str, AnnotatedPictures] = {}
    found: list[Finding] = []
    for purpose, pictures in given.items():
        own, contents = contents[: len(pictures)], contents[len(pictures) :]
        splits[purpose], in_split = checked(pictures, classes, own)
        found += in_split
    # Findings about a file that belongs to several splits are reported once.
    problems = list(dict.fromkeys([*found, *in_both]))
    fixed = list(dict.fromkeys(finding for pictures in splits.values() for finding in pictures.fixed))
    train, val = splits["training"], splits["scoring"]

    fix = f"Left to fix={getattr(data, 'fix', None)}"
    # The rest must pass the checks of a training.
    try:
        refuse_unusable(splits, classes)
        refuse_data_without_objects(splits)
    except ValueError as error:
        if not problems and not fixed:
            raise
        write_findings(folder / "findings.csv", problems, fixed, [])
        pages = draw_pages(folder, splits, problems, classes)
        _print(console, [*told("Problem", problems), *told(fix, fixed), f"Results: {', '.join(map(str, pages))}"])
        if not problems:
            left_out = f"what data.fix={getattr(data, 'fix', None)} leaves out"
            raise ValueError(f"{error}, without {left_out}: see {folder / 'findings.csv'}") from None
        _fail(folder, problems, data, "Nothing is left without them")
    problems += [finding for part in list(splits.values())[1:] for finding in truth_scored(part, len(classes))]
    remarks = [
        *dict.fromkeys(remark for pictures in splits.values() for remark in pictures.remarks),
        *(remark for purpose, part in splits.items() for remark in absent_classes(part, classes, purpose)),
        *odd_names(classes),
        *twice,
        *(remark for pictures in splits.values() for remark in repeated_objects(pictures)),
        *(remark for pictures in splits.values() for remark in tiny_objects(pictures)),
    ]
    write_findings(folder / "findings.csv", problems, fixed, remarks)

    with open_dict(config):
        config.model.num_classes = len(classes)
    model: SSD = instantiate(without_weights(plain_values(config.model)), _convert_="all")
    threshold = instantiate(config.matcher, _convert_="all").iou_threshold
    # Default boxes are not chosen by the pictures of a test.
    boxes, labels = np.concatenate((train.boxes, val.boxes)), np.concatenate((train.labels, val.labels))
    best = best_ious(boxes, model.default_boxes)
    by_class = coverage_by_class(labels, best, classes, threshold)
    by_size = coverage_by_size(sides(boxes, model.image_size), best, threshold)
    write_table(by_class, folder / "classes.csv")
    write_table(by_size, folder / "sizes.csv")
    save_figure(draw_data_set(train, val, classes, model, best, threshold), folder / "figures" / "data.png")

    pages = draw_pages(folder, splits, [*problems, *fixed, *remarks], classes)

    first, *others = splits.items()
    counts = f"{counted(len(first[1]), 'picture')} for {first[0]}"
    counts += "".join(f", {len(pictures)} for {purpose}" for purpose, pictures in others)
    objects = sum(len(pictures.labels) for pictures in splits.values())
    line = f"{counts}; {counted(objects, 'object')} of {counted(len(classes), 'class', 'classes')}"
    console.print(line, highlight=False)
    model_name = HydraConfig.get().runtime.choices["model"]
    worst = worst_classes(by_class, -by_class["unreached"])
    console.print(_table(worst, f"Default boxes of {model_name}, and the objects", threshold))
    console.print(_table(by_size, "By size in the network's input", threshold))
    for name, findings in (("Problem", problems), (fix, fixed), ("Remark", remarks)):
        _print(console, told(name, findings))
    looked_at = ["data.png", *(page.name for page in pages)]
    console.print(f"Results: {folder} (look at figures/{', figures/'.join(looked_at)})", soft_wrap=True)
    if problems:
        _fail(folder, problems, data, "")
    # Without a default box, an object has a forced match alone.
    command = "ssd-boxes" if by_class.loc["all", "unreached"] > MOST_UNREACHED else "ssd-train"
    console.print(f"Next:    {command} with the same arguments", soft_wrap=True)


PAGES = {"training": "train", "scoring": "val", "the test": "test"}
"""Names of the pages by the purpose of their pictures."""


def draw_pages(
    folder: Path, splits: dict[str, AnnotatedPictures], findings: list[Finding], classes: tuple[str, ...]
) -> list[Path]:
    """Draw some pictures of each split with their boxes; return the files."""
    pages = []
    for purpose, pictures in splits.items():
        shown = choose_pictures(pictures, findings)
        if shown:
            pages.append(folder / "figures" / f"{PAGES[purpose]}_pictures.png")
            save_figure(draw_pictures(shown, classes, pictures.max_megapixels), pages[-1])
    return pages


def _annotated(pictures: Pictures) -> AnnotatedPictures:
    if not isinstance(pictures, AnnotatedPictures):
        raise ValueError(f"data: expected AnnotatedPictures to check, got {type(pictures).__name__}")
    return pictures


def _print(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True)


def _fail(folder: Path, problems: list[Finding], data: DetectionData, more: str) -> NoReturn:
    count = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
    text = f"data: expected none, got {count}, all in {folder / 'findings.csv'}"
    raise ValueError(
        ". ".join(part for part in (text, more, advice(problems, data, leaves_nothing=bool(more))) if part)
    )


def truth_scored(pictures: AnnotatedPictures, num_classes: int) -> list[Finding]:
    """Score the ground truth as detections, which must be perfect."""
    image_ids = np.repeat(np.arange(len(pictures)), pictures.counts)
    boxes = pictures.boxes * np.tile(pictures.sizes[image_ids][:, ::-1], 2)
    objects = ObjectRecords(image_ids, pictures.labels, boxes, pictures.difficult)
    detections = DetectionRecords(image_ids, pictures.labels, boxes, np.ones(len(boxes), dtype=np.float32))
    # All objects of a picture must be found, even if they are more than the detections that COCO counts.
    most = max(MAX_DETECTIONS, int(pictures.counts.max(initial=0)))
    scores = score(detections, objects, num_classes, most)
    wrong = {name: value for name, value in scores.items() if abs(value - 1) > 1e-6}
    return [
        Finding("scores", f"{name} of the ground truth itself: expected 1, got {value:g}")
        for name, value in wrong.items()
    ]


def write_findings(path: Path, problems: list[Finding], fixed: list[Finding], remarks: list[Finding]) -> None:
    """Write all findings as one table, as a whole or not at all."""
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(("what", "kind", "text"))
    for what, findings in (("problem", problems), ("fixed", fixed), ("remark", remarks)):
        writer.writerows((what, kind, cell(text)) for kind, text in findings)
    replace_text(path, written.getvalue())


def told(name: str, findings: list[Finding]) -> Iterator[str]:
    """Yield the number of findings of each kind and the first of them, as lines of text."""
    by_kind = defaultdict(list)
    for kind, text in findings:
        by_kind[kind].append(printable(text))
    for kind, texts in by_kind.items():
        yield f"{name}, {kind}: {len(texts)}"
        yield from (f"  {text}" for text in texts[:MOST_SHOWN])
        if len(texts) > MOST_SHOWN:
            yield f"  … and {len(texts) - MOST_SHOWN} more"


def advice(problems: list[Finding], data: DetectionData, leaves_nothing: bool = False) -> str:
    """Return the settings that deal with all problems, as text; empty if there are none.

    Args:
        problems: all problems.
        data: the data set, which may have been given some settings.
        leaves_nothing: true if nothing is left without the faulty parts, so that leaving them out is no advice.
    """
    given = FIXED.get(getattr(data, "fix", "none"))
    if given is None:
        return ""  # The data set has no such key.
    # A value that does no more than the given one would not help.
    ways = [way for way in ("clip", "skip") if given < FIXED[way] and not (way == "skip" and leaves_nothing)]
    kinds = {kind for kind, _ in problems}
    settings = [f"data.fix={way}" for way in ways if kinds <= FIXED[way]]
    if "turned" in kinds and hasattr(data, "boxes_of"):
        other = f"data.boxes_of={'shown' if data.boxes_of == 'stored' else 'stored'}"
        # Boxes that are turned in the wrong way often reach over the edge.
        settings.insert(0, other)
    return f"Try {' or '.join(settings)}." if settings else ""


def _table(coverage: pd.DataFrame, title: str, threshold: float) -> Table:
    table = Table(title=title)
    table.add_column(str(coverage.index.name))
    for column in ("objects", f"no IoU of {threshold:g}", "mean best IoU"):
        table.add_column(column, justify="right")
    for name, (objects, unreached, best) in coverage.iterrows():
        shares = ("", "") if unreached != unreached else (f"{unreached:.1%}", f"{best:.2f}")
        table.add_row(str(name), str(int(objects)), *shares, style="bold" if name == "all" else None)
    return table
