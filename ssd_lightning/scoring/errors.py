"""Causes of false detections and of missed objects, and what each cause costs; after TIDE, arXiv 2008.08115.

::

    records ── find_errors ──> Errors ── error_table ──> a row for each error
                                      ── cost_in_ap ──> the AP that each cause costs

Detections show that an object was missed. Why SSD missed it depends on the network, see ``missed.py``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from ssd_lightning.records import BACKGROUND, DRAW_THRESHOLD, DetectionRecords, ObjectRecords, select
from ssd_lightning.require import require_number
from ssd_lightning.scoring.assignment import (
    Pairs,
    assign_detections,
    best_first,
    best_objects,
    check_records,
    pairs_of_same_image,
)
from ssd_lightning.scoring.average_precision import voc_average_precision

CLASSIFICATION = "classification"
LOCALISATION = "localisation"
BOTH = "both"
DUPLICATE = "duplicate"
MISSED = "missed"

CAUSES = {
    CLASSIFICATION: "on an object, as another class",
    LOCALISATION: "near an object of its class, but placed badly",
    BOTH: "near an object of another class",
    DUPLICATE: "on an object that a better detection has found",
    BACKGROUND: "where no object is",
    MISSED: "an object without any detection",
}
"""All causes, and the meaning of each."""

SHORT_NAMES = {CLASSIFICATION: "cls", LOCALISATION: "loc", BOTH: "both", DUPLICATE: "dup", BACKGROUND: "bkg"}
"""Names of causes for places with little room."""

TRUE = "true"
FOUND = "found"
IGNORED = "ignored"
"""Outcome of a difficult object, and of a detection of one: neither right nor wrong."""

BACKGROUND_THRESHOLD = 0.1
"""IoU below which a detection has nothing to do with an object; TIDE's t_b, section 2.2."""


class Errors(NamedTuple):
    """The outcome of each detection and of each object, in the order of the records."""

    detection_causes: np.ndarray
    """``true``, ``ignored``, or the cause of a false detection: one of ``CAUSES`` except ``missed``."""
    object_rows: Int[np.ndarray, " detections"]
    """The object that the detection is true, ignored or false for; -1 for the background."""
    iou: Float[np.ndarray, " detections"]
    """IoU with that object."""
    object_causes: np.ndarray
    """``found``, ``ignored``, or the cause of a miss: ``classification`` or ``localisation`` if the object has a
    detection with that cause, else ``missed``."""

    @property
    def is_false(self) -> Bool[np.ndarray, " detections"]:
        """The detections that are neither true nor ignored."""
        return ~np.isin(self.detection_causes, (TRUE, IGNORED))

    @property
    def is_not_found(self) -> Bool[np.ndarray, " objects"]:
        """The objects that are neither found nor ignored."""
        return ~np.isin(self.object_causes, (FOUND, IGNORED))


def find_errors(
    detections: DetectionRecords,
    objects: ObjectRecords,
    num_classes: int,
    iou_threshold: float = 0.5,
    background_threshold: float | None = None,
) -> Errors:
    """Find the cause of each false detection and of each miss.

    True, false and ignored detections are those of average precision, see
    :func:`ssd_lightning.scoring.assignment.assign_detections`. A false detection has the first cause that applies:

    * duplicate: IoU ≥ ``iou_threshold`` with the best object of its class, which a better detection has found;
    * classification: IoU ≥ ``iou_threshold`` with an object of another class;
    * localisation: IoU ≥ ``background_threshold`` with the best object of its class;
    * both: IoU ≥ ``background_threshold`` with an object of another class;
    * background: none of these.

    (The code of TIDE tests localisation first. A well-placed detection of the wrong class would then be blamed on a
    neighbour of its own class.)

    An object that was not found has the cause of its best detection with ``classification`` or ``localisation``. An
    object without such a detection is ``missed``.

    Difficult objects are neither found nor missed. A false detection can still be assigned to a difficult object.

    Args:
        detections: detections of a data set.
        objects: the truth.
        num_classes: without background.
        iou_threshold: lowest IoU at which a detection finds an object.
        background_threshold: default: TIDE's 0.1, or ``iou_threshold`` if that is lower.

    Raises:
        ValueError: as :func:`ssd_lightning.scoring.average_precision.voc_average_precision`, and if
            ``background_threshold`` is not in (0, ``iou_threshold``].
    """
    check_records(detections, objects, num_classes)
    require_number("iou_threshold", iou_threshold, "(0, 1]")
    if background_threshold is None:
        background_threshold = min(BACKGROUND_THRESHOLD, iou_threshold)
    require_number("background_threshold", background_threshold, "(0, 1]")
    if background_threshold > iou_threshold:
        raise ValueError(
            f"background_threshold: expected a number in (0, iou_threshold = {iou_threshold:g}], "
            f"got {background_threshold}"
        )
    own_rows, own_iou, is_true, is_ignored = assign_detections(detections, objects, iou_threshold)
    pairs = pairs_of_same_image(detections, objects)
    is_other = detections.labels[pairs.detection_rows] != objects.labels[pairs.object_rows]
    of_other_classes = Pairs(pairs.detection_rows[is_other], pairs.object_rows[is_other])
    other_rows, other_iou = best_objects(of_other_classes, detections, objects)

    is_cause = {
        TRUE: is_true,
        IGNORED: is_ignored,
        DUPLICATE: own_iou >= iou_threshold,
        CLASSIFICATION: other_iou >= iou_threshold,
        LOCALISATION: own_iou >= background_threshold,
        BOTH: other_iou >= background_threshold,
    }
    causes = np.select(list(is_cause.values()), list(is_cause), default=BACKGROUND).astype(object)
    is_of_other = np.isin(causes, (CLASSIFICATION, BOTH))
    object_rows = np.where(is_of_other, other_rows, own_rows)
    object_rows[causes == BACKGROUND] = -1
    iou = np.where(object_rows < 0, 0.0, np.where(is_of_other, other_iou, own_iou))

    object_causes = np.full(len(objects.labels), MISSED, dtype=object)
    # The worst detections come first, so that the best detection of an object sets its cause last.
    blamed = best_first(detections, np.flatnonzero(np.isin(causes, (CLASSIFICATION, LOCALISATION))))[::-1]
    object_causes[object_rows[blamed]] = causes[blamed]
    object_causes[object_rows[is_true]] = FOUND
    object_causes[objects.difficult] = IGNORED
    return Errors(causes, object_rows, iou, object_causes)


def error_table(
    detections: DetectionRecords,
    objects: ObjectRecords,
    classes: Sequence[str],
    iou_threshold: float = 0.5,
    score_threshold: float = DRAW_THRESHOLD,
) -> pd.DataFrame:
    """Return a row for each false detection, the highest score first, then a row for each ``missed`` object.

    Args:
        detections: detections of a data set.
        objects: the truth.
        classes: names; the class of label n is at n - 1.
        iou_threshold: lowest IoU at which a detection finds an object.
        score_threshold: lowest score of the detections that are used; 0 uses all.

    Returns:
        Columns: ``image_id``; ``cause``, categorical, so that ``value_counts()`` has all causes; ``detected`` and
        ``truth``, the classes of the detection and of its object; ``score``; ``iou`` with its object; ``detection`` and
        ``object``, rows of the records; and the box as ``left``, ``top``, ``right``, ``bottom``. Without a detection
        or an object, text and numbers are missing (NaN), and rows are -1.

    Raises:
        ValueError: as :func:`find_errors`.
    """
    require_number("score_threshold", score_threshold, "[0, 1]")
    rows = np.flatnonzero(detections.scores >= score_threshold)
    seen = select(detections, rows)
    errors = find_errors(seen, objects, len(classes), iou_threshold)
    false = best_first(seen, np.flatnonzero(errors.is_false))
    missed = np.flatnonzero(errors.object_causes == MISSED)
    no_row, no_number = np.full(len(missed), -1), np.full(len(missed), np.nan)
    object_rows = np.append(errors.object_rows[false], missed)
    names = np.array([*classes, None], dtype=object)
    boxes = np.concatenate((seen.boxes[false], objects.boxes[missed]))
    return pd.DataFrame(
        {
            "image_id": np.append(seen.image_ids[false], objects.image_ids[missed]),
            "cause": pd.Categorical(
                np.append(errors.detection_causes[false], errors.object_causes[missed]), list(CAUSES)
            ),
            "detected": names[np.append(seen.labels[false] - 1, no_row)],
            "truth": names[np.append(objects.labels - 1, -1)[object_rows]],
            "score": np.append(seen.scores[false], no_number),
            "iou": np.append(errors.iou[false], no_number),
            "detection": np.append(rows[false], no_row),
            "object": object_rows,
            **dict(zip(("left", "top", "right", "bottom"), boxes.T, strict=True)),
        }
    )


FALSE_DETECTIONS = "all false detections"
MISSES = "all misses"


def cost_in_ap(
    detections: DetectionRecords,
    objects: ObjectRecords,
    num_classes: int,
    iou_threshold: float = 0.5,
    background_threshold: float | None = None,
    score_threshold: float = DRAW_THRESHOLD,
) -> pd.DataFrame:
    """Compute by how much the mean AP (VOC, area) would rise if the errors of one cause were mended.

    Errors are mended as in TIDE, section 2.3. A detection of the wrong class gets the right class, and a badly placed
    detection gets the box of its object. The detection is removed if another detection finds that object, or would find
    it with a higher score after mending. Detections with any other cause are removed. Missed objects are removed from
    the truth. (A class that loses all its objects has AP 0, since nothing was found.)

    Costs do not add up to 1 − AP: without one cause, the other causes weigh more.

    Args:
        detections: detections of a data set.
        objects: the truth.
        num_classes: without background.
        iou_threshold: lowest IoU at which a detection finds an object.
        background_threshold: as for :func:`find_errors`.
        score_threshold: lowest score of the detections that are counted in ``errors shown``.

    Returns:
        A row for each cause; then a row for all false detections, and a row for all misses. Columns: ``errors``, the
        number of errors among all detections; ``errors shown``, the number among the detections with at least
        ``score_threshold`` alone; ``mended``, the mean AP without these errors; ``cost``, the difference to the mean AP
        with them. AP uses all detections, although low scores weigh little.

    Raises:
        ValueError: as :func:`find_errors`.
    """
    errors = find_errors(detections, objects, num_classes, iou_threshold, background_threshold)
    require_number("score_threshold", score_threshold, "[0, 1]")
    shown = select(detections, detections.scores >= score_threshold)
    errors_shown = find_errors(shown, objects, num_classes, iou_threshold, background_threshold)
    has_objects = np.bincount(objects.labels[~objects.difficult], minlength=num_classes + 1)[1:] > 0

    def mean_ap(detections: DetectionRecords, objects: ObjectRecords) -> float:
        if not has_objects.any():
            return np.nan
        averages = voc_average_precision(detections, objects, num_classes, iou_threshold).average_precision
        return float(np.nan_to_num(averages[has_objects]).mean())

    now = mean_ap(detections, objects)
    rows = {cause: mean_ap(*mend(detections, objects, errors, cause)) for cause in CAUSES}
    rows[FALSE_DETECTIONS] = mean_ap(select(detections, ~errors.is_false), objects)
    rows[MISSES] = mean_ap(detections, select(objects, ~errors.is_not_found))
    table = pd.DataFrame({"mended": rows}, index=pd.Index(list(rows), name="cause"))
    table.insert(0, "errors", [_count(errors, cause) for cause in rows])
    table.insert(1, "errors shown", [_count(errors_shown, cause) for cause in rows])
    table["cost"] = table["mended"] - now
    return table


def mend(
    detections: DetectionRecords, objects: ObjectRecords, errors: Errors, cause: str
) -> tuple[DetectionRecords, ObjectRecords]:
    """Return the records without the errors of one cause; see :func:`cost_in_ap` for the rules.

    Raises:
        ValueError: if ``cause`` is not one of ``CAUSES``.
    """
    if cause not in CAUSES:
        raise ValueError(f"cause: expected one of {', '.join(CAUSES)}, got {cause!r}")
    if cause == MISSED:
        return detections, select(objects, errors.object_causes != MISSED)
    is_cause = errors.detection_causes == cause
    is_kept = ~is_cause
    labels, boxes = detections.labels.copy(), detections.boxes.copy()
    if cause in (CLASSIFICATION, LOCALISATION):
        has_open_object = np.append(errors.is_not_found, False)[errors.object_rows]
        candidates = best_first(detections, np.flatnonzero(is_cause & has_open_object))
        _, first = np.unique(errors.object_rows[candidates], return_index=True)
        mended = candidates[first]
        is_kept[mended] = True
        labels[mended] = objects.labels[errors.object_rows[mended]]
        if cause == LOCALISATION:
            boxes[mended] = objects.boxes[errors.object_rows[mended]]
    return select(detections._replace(labels=labels, boxes=boxes), is_kept), objects


def _count(errors: Errors, cause: str) -> int:
    if cause == FALSE_DETECTIONS:
        return int(errors.is_false.sum())
    if cause == MISSES:
        return int(errors.is_not_found.sum())
    return int(((errors.object_causes if cause == MISSED else errors.detection_causes) == cause).sum())
