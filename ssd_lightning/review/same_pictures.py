"""The pictures and objects that runs were scored on, and whether they are the same for several runs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ssd_lightning.records import ObjectRecords
from ssd_lightning.scoring.stored_detections import FILE_NAME, StoredDetections, load_names, load_objects, open_stored


class PictureSet(NamedTuple):
    """The pictures, classes and objects that a run was scored on."""

    pictures: list[str]
    """File names without folders: on another machine the folder can be another."""
    classes: list[str]
    objects: Float[np.ndarray, "objects 7"]
    """Picture, label, whether the object is difficult, and box; sorted."""

    def difference(self, other: "PictureSet") -> str | None:
        """Return the first of ``classes``, ``pictures`` and ``objects`` that differs, or None if the sets are equal."""
        if self.classes != other.classes:
            return "classes"
        if self.pictures != other.pictures:
            return "pictures"
        is_same = self.objects.shape == other.objects.shape and np.allclose(self.objects, other.objects, atol=0.01)
        return None if is_same else "objects"


def picture_set(stored: StoredDetections) -> PictureSet:
    """Return the set that stored detections belong to."""
    return _picture_set(stored.paths, stored.classes, stored.objects)


def picture_sets(runs: Iterable[Path | str]) -> tuple[list[PictureSet], list[int | None]]:
    """Find the sets that runs were scored on.

    Returns:
        The sets that differ; and for each run the position of its set, or None if its stored detections cannot be read.
    """
    sets: list[PictureSet] = []
    positions: list[int | None] = []
    for run in runs:
        mine = _read_picture_set(Path(run))
        if mine is None:
            positions.append(None)
            continue
        position = next((at for at, known in enumerate(sets) if known.difference(mine) is None), len(sets))
        if position == len(sets):
            sets.append(mine)
        positions.append(position)
    return sets, positions


def _read_picture_set(run: Path) -> PictureSet | None:
    """Read the set of a run without its detections, which are many."""
    try:
        with open_stored(run / FILE_NAME) as file:
            paths, classes = load_names(file)
            return _picture_set(paths, classes, load_objects(file, paths, classes))
    except Exception:  # numpy and zipfile raise a dozen types of errors for other files.
        return None


def _picture_set(paths: Sequence[str], classes: Sequence[str], objects: ObjectRecords) -> PictureSet:
    rows = np.column_stack([objects.image_ids, objects.labels, objects.difficult, objects.boxes]).astype(np.float64)
    return PictureSet([Path(path).name for path in paths], list(classes), rows[np.lexsort(rows.round(1).T[::-1])])
