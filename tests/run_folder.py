"""The files of a finished run."""

import json
from pathlib import Path
from typing import Any, NamedTuple

COMPLETE = {
    ".hydra/config.yaml",
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
    "confusion.csv",
    "detections.npz",
    "error_costs.csv",
    "figures/confusion.png",
    "figures/curves.png",
    "figures/error_costs.png",
    "figures/per_class.png",
    "figures/precision_recall.png",
    "figures/score_thresholds.png",
    "figures/training_pictures.png",
    "figures/training_statistics.png",
    "figures/validation_detections.png",
    "figures/worst_pictures.png",
    "metrics.csv",
    "precision_recall.csv",
    "scores.csv",
    "summary.json",
}


class Trained(NamedTuple):
    """A finished run."""

    folder: Path
    out: str
    """The output of the command."""

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def checkpoint(self) -> str:
        """The argument that names this checkpoint."""
        return f"checkpoint={self.best}"


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())
