"""Compare two detectors that were scored on the same pictures: by class, by size of the objects, by cause of error.

    uv run python benchmarks/accuracy/side_by_side.py <folder of torchvision_ssdlite.py> <run folder of ssd-train>

Each argument is a folder with ``detections.npz``. Nothing is trained, and no network runs. The tables are Markdown.
"""

import argparse
from pathlib import Path

import pandas as pd

from ssd_lightning.review import compare_classes, compare_runs, score_intervals
from ssd_lightning.scoring import cost_in_ap, load_detections, score, score_by_class

SIZES = {"COCO AP small": "below 32²", "COCO AP medium": "32² to 96²", "COCO AP large": "above 96²"}
"""Columns of the scores, and the areas of their objects in pixels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    arguments = parser.parse_args()
    runs = {"a": arguments.a, "b": arguments.b}
    stored = {name: load_detections(run) for name, run in runs.items()}

    print("\n## Scores\n")
    columns = {name: score(s.detections, s.objects, len(s.classes)) for name, s in stored.items()}
    show(pd.DataFrame(columns).rename_axis("score"))
    print("\n## Intervals of 95 % over the pictures\n")
    intervals = {name: score_intervals(run) for name, run in runs.items()}
    show(pd.concat(intervals, axis=1).pipe(flat))
    print("\n## Difference\n")
    show(compare_runs(arguments.a, arguments.b))
    print("\n## By size of the objects, in pixels\n")
    tables = {name: score_by_class(s.detections, s.objects, s.classes) for name, s in stored.items()}
    show(pd.DataFrame({name: table.loc["mean", list(SIZES)] for name, table in tables.items()}).rename(SIZES))
    print("\n## AP50 that each cause of error costs\n")
    show(
        pd.concat(
            {name: cost_in_ap(s.detections, s.objects, len(s.classes)) for name, s in stored.items()}, axis=1
        ).pipe(flat)
    )
    print("\n## By class\n")
    show(compare_classes(stored["a"], stored["b"]))


def flat(table: pd.DataFrame) -> pd.DataFrame:
    """Join the two levels of the columns."""
    return table.set_axis([" ".join(map(str, column)) for column in table.columns], axis=1)


def show(table: pd.DataFrame) -> None:
    """Print a table in Markdown, numbers with three decimals."""
    rows = [[table.index.name or "", *table.columns], ["---", *["---:"] * len(table.columns)]]
    rows += [[name, *map(text, row)] for name, *row in table.itertuples(name=None)]
    print("\n".join(f"| {' | '.join(map(str, row))} |" for row in rows))


def text(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
