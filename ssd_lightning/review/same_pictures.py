"""Which runs were scored on the same pictures."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class PictureSet(NamedTuple):
    """What runs were scored on: by the names, since the folder may be another on another machine."""

    names: list[str]
    classes: list[str]
    truth: Float[np.ndarray, "objects 7"]
    """Picture, label, whether it is difficult, and box of each object, sorted."""

    def is_same(self, other: "PictureSet") -> bool:
        is_alike = self.names == other.names and self.classes == other.classes and len(self.truth) == len(other.truth)
        return is_alike and np.allclose(self.truth, other.truth, atol=0.01)


def picture_sets(runs: Iterable[Path | str]) -> tuple[list[PictureSet], list[int | None]]:
    """All sets that differ, and the position of that of each run; None where no stored detections can be read."""
    sets: list[PictureSet] = []
    positions: list[int | None] = []
    for run in runs:
        mine = _pictures_of(Path(run))
        if mine is None:
            positions.append(None)
            continue
        position = next((position for position, known in enumerate(sets) if known.is_same(mine)), len(sets))
        if position == len(sets):
            sets.append(mine)
        positions.append(position)
    return sets, positions


def _pictures_of(run: Path) -> PictureSet | None:
    """The detections themselves are not read: they are many."""
    try:
        with np.load(run / "detections.npz", allow_pickle=False) as file:
            columns = [file[f"objects.{name}"] for name in ("image_ids", "labels", "difficult", "boxes")]
            truth = np.column_stack(columns).astype(np.float64)
            names = [Path(path).name for path in file["paths"].tolist()]
            return PictureSet(names, file["classes"].tolist(), truth[np.lexsort(truth.round(1).T[::-1])])
    except Exception:  # numpy and zipfile raise a dozen kinds for files that are something else
        return None
