"""Why detections are false and objects are missed, and what each cause costs; after TIDE, arXiv 2008.08115.

::

    records ── find_errors ──> Errors ── error_table ──> a row for each
                                      ── cost_in_ap ──> what AP would gain without each cause

That an object was missed is said by detections; why SSD missed it is known to the network, see ``missed.py``.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from ssd_lightning.require import require_number
from ssd_lightning.scoring.average_precision import (
    Pairs,
    assign_detections,
    check_records,
    iou_of_pairs,
    pairs_of_same_image_and_class,
    voc_average_precision,
)
from ssd_lightning.structures import DRAW_THRESHOLD, DetectionRecords, ObjectRecords

CLASSIFICATION = "classification"
LOCALISATION = "localisation"
BOTH = "both"
DUPLICATE = "duplicate"
BACKGROUND = "background"
MISSED = "missed"

CAUSES = {
    CLASSIFICATION: "on an object, as another class",
    LOCALISATION: "near an object of its class, but placed badly",
    BOTH: "near an object of another class",
    DUPLICATE: "on an object that a better detection has found",
    BACKGROUND: "where no object is",
    MISSED: "an object that no detection is for",
}
"""Every cause, with what it means."""

Records = TypeVar("Records", DetectionRecords, ObjectRecords)

TRUE = "true"
FOUND = "found"
IGNORED = "ignored"
"""Not false: a detection of a difficult object. Not missed: a difficult object."""

BACKGROUND_THRESHOLD = 0.1
"""IoU below which a detection has nothing to do with an object; TIDE's t_b, section 2.2."""


class Errors(NamedTuple):
    """What became of each detection and of each object, in the order of the records."""

    detection_causes: np.ndarray
    """``true``, ``ignored``, or why it is false: one of ``CAUSES`` but ``missed``."""
    object_rows: Int[np.ndarray, " detections"]
    """The object that the detection is true, ignored or false for; -1 for the background."""
    iou: Float[np.ndarray, " detections"]
    """Overlap with it."""
    object_causes: np.ndarray
    """``found``, ``ignored``, or why it was not found: ``classification`` or ``localisation`` if a detection failed at
    it for that cause, else ``missed``."""


def find_errors(
    detections: DetectionRecords,
    objects: ObjectRecords,
    num_classes: int,
    iou_threshold: float = 0.5,
    background_threshold: float | None = None,
) -> Errors:
    """Give each false detection and each object that was not found the cause.

    What is true, false, ignored and found is as average precision has it, see
    :func:`ssd_lightning.scoring.average_precision.assign_detections`. A false detection has the first of these that is so:

    * duplicate: IoU ≥ ``iou_threshold`` with the best object of its class, which a better detection has found;
    * classification: IoU ≥ ``iou_threshold`` with an object of another class;
    * localisation: IoU ≥ ``background_threshold`` with the best object of its class;
    * both: IoU ≥ ``background_threshold`` with an object of another class;
    * background: none of them.

    (The code of TIDE looks for localisation first, so that a well-placed detection of the wrong class would be blamed
    for a neighbour of its own class that it touches.) An object that was not found is put down to ``classification`` or
    ``localisation`` if there are such detections of it, to the one with the higher score, and is ``missed`` otherwise.

    Difficult objects are neither found nor missed. A detection that is false although it touches one has that object
    for its cause, as one sees it in the picture.

    ``background_threshold`` is TIDE's 0.1 where it is not given, or ``iou_threshold`` if that is less.

    Raises:
        ValueError: as :func:`ssd_lightning.scoring.average_precision.voc_average_precision`, and when
            ``background_threshold`` is not in (0, ``iou_threshold``].
    """
    check_records(detections, objects, num_classes)
    require_number("iou_threshold", iou_threshold, "(0, 1]")
    if background_threshold is None:
        background_threshold = min(BACKGROUND_THRESHOLD, iou_threshold)
    if not 0 < background_threshold <= iou_threshold:
        raise ValueError(
            f"background_threshold: expected a number in (0, iou_threshold = {iou_threshold:g}], "
            f"got {background_threshold}"
        )
    own_rows, own_iou, is_true, is_ignored = assign_detections(detections, objects, iou_threshold)
    other_rows, other_iou = _best_of_other_classes(detections, objects)

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
    # From the worst to the best: of several for one object, the last is what stays.
    blamed = _best_first(detections, np.isin(causes, (CLASSIFICATION, LOCALISATION)))[::-1]
    object_causes[object_rows[blamed]] = causes[blamed]
    object_causes[object_rows[is_true]] = FOUND
    object_causes[objects.difficult] = IGNORED
    return Errors(causes, object_rows, iou, object_causes)


def with_score(detections: DetectionRecords, least: float) -> DetectionRecords:
    """Those with at least that score, as one sees them drawn."""
    return _take(detections, np.flatnonzero(detections.scores >= least))


def error_table(
    detections: DetectionRecords,
    objects: ObjectRecords,
    classes: Sequence[str],
    iou_threshold: float = 0.5,
    score_threshold: float = DRAW_THRESHOLD,
) -> pd.DataFrame:
    """A row for each false detection, the highest score first, then one for each object that is ``missed``.

    Columns: ``image_id``; ``cause``, categorical, so that ``value_counts()`` has all of them; ``detected`` and
    ``truth``, the classes of the detection and of the object that it belongs to, and ``score`` and ``iou`` with that
    object, NaN where there is none; ``detection`` and ``object``, rows of the records, -1 for none; ``left``, ``top``,
    ``right``, ``bottom`` of the detection, or of the missed object.

    Args:
        detections: of a data set.
        objects: its truth.
        classes: names; the class of label n is at n - 1.
        iou_threshold: from which on a detection finds an object.
        score_threshold: only detections with at least this score are taken; 0: all that were kept for scoring.

    Raises:
        ValueError: as :func:`find_errors`.
    """
    rows = np.flatnonzero(detections.scores >= score_threshold)
    errors = find_errors(_take(detections, rows), objects, len(classes), iou_threshold)
    is_false = ~np.isin(errors.detection_causes, (TRUE, IGNORED))
    false = _best_first(_take(detections, rows), is_false)
    missed = np.flatnonzero(errors.object_causes == MISSED)
    nothing = np.full(len(missed), -1)
    detection_rows = np.append(rows[false], nothing)
    object_rows = np.append(errors.object_rows[false], missed)
    names = np.array([*classes, None], dtype=object)
    boxes = np.concatenate((detections.boxes[rows[false]], objects.boxes[missed]))
    return pd.DataFrame(
        {
            "image_id": np.append(detections.image_ids[rows[false]], objects.image_ids[missed]),
            "cause": pd.Categorical(
                np.append(errors.detection_causes[false], errors.object_causes[missed]), list(CAUSES)
            ),
            "detected": names[np.append(detections.labels[rows[false]] - 1, nothing)],
            "truth": names[np.append(objects.labels - 1, -1)[object_rows]],
            "score": np.append(detections.scores[rows[false]], np.full(len(missed), np.nan)),
            "iou": np.append(errors.iou[false], np.full(len(missed), np.nan)),
            "detection": detection_rows,
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
    """What the mean AP (VOC, area) would gain if one cause were mended and all else stayed, a row for each cause.

    Columns: ``errors``, how many there are among all detections; ``errors shown``, the same where only detections with
    at least ``score_threshold`` are looked at; ``mended``, the mean AP then; ``cost``, what that is more than now. All
    detections count for both, since they do for AP, although those with low scores weigh little.

    Mended as in TIDE, section 2.3: a detection of the wrong class gets the right one, a badly placed one the box of its
    object, if that object was not found and no better detection would be mended into it; otherwise it is removed, and
    so are detections with any other cause. Missed objects are taken out of the truth. (A class of which none is left
    has AP 0, as nothing was found.) The last two rows are without all false detections, and without all objects that
    were not found.

    Costs do not add up to what is missing to 1: where one cause goes, others weigh more.

    Raises:
        ValueError: as :func:`find_errors`.
    """
    errors = find_errors(detections, objects, num_classes, iou_threshold, background_threshold)
    shown = with_score(detections, score_threshold)
    errors_shown = find_errors(shown, objects, num_classes, iou_threshold, background_threshold)
    has_objects = np.bincount(objects.labels[~objects.difficult], minlength=num_classes + 1)[1:] > 0

    def mean_ap(detections: DetectionRecords, objects: ObjectRecords) -> float:
        if not has_objects.any():
            return np.nan
        averages = voc_average_precision(detections, objects, num_classes, iou_threshold).average_precision
        return float(np.nan_to_num(averages[has_objects]).mean())

    now = mean_ap(detections, objects)
    rows = {cause: mean_ap(*mend(detections, objects, errors, cause)) for cause in CAUSES}
    is_kept = np.isin(errors.detection_causes, (TRUE, IGNORED))
    rows[FALSE_DETECTIONS] = mean_ap(_take(detections, np.flatnonzero(is_kept)), objects)
    rows[MISSES] = mean_ap(detections, _found_or_ignored(objects, errors))
    table = pd.DataFrame({"mended": rows}, index=pd.Index(list(rows), name="cause"))
    table.insert(0, "errors", [_count(errors, cause) for cause in rows])
    table.insert(1, "errors shown", [_count(errors_shown, cause) for cause in rows])
    table["cost"] = table["mended"] - now
    return table


def mend(
    detections: DetectionRecords, objects: ObjectRecords, errors: Errors, cause: str
) -> tuple[DetectionRecords, ObjectRecords]:
    """The records without the errors of one cause; see :func:`cost_in_ap` for how.

    Raises:
        ValueError: if there is no such cause.
    """
    if cause not in CAUSES:
        raise ValueError(f"cause: expected one of {', '.join(CAUSES)}, got {cause!r}")
    if cause == MISSED:
        return detections, _take(objects, np.flatnonzero(errors.object_causes != MISSED))
    is_cause = errors.detection_causes == cause
    is_kept = ~is_cause
    labels, boxes = detections.labels.copy(), detections.boxes.copy()
    if cause in (CLASSIFICATION, LOCALISATION):
        is_open = ~np.isin(errors.object_causes, (FOUND, IGNORED))
        candidates = _best_first(detections, is_cause & np.append(is_open, False)[errors.object_rows])
        _, first = np.unique(errors.object_rows[candidates], return_index=True)
        mended = candidates[first]
        is_kept[mended] = True
        labels[mended] = objects.labels[errors.object_rows[mended]]
        if cause == LOCALISATION:
            boxes[mended] = objects.boxes[errors.object_rows[mended]]
    return _take(detections._replace(labels=labels, boxes=boxes), np.flatnonzero(is_kept)), objects


def _best_of_other_classes(
    detections: DetectionRecords, objects: ObjectRecords
) -> tuple[Int[np.ndarray, " detections"], Float[np.ndarray, " detections"]]:
    """The object of another class with the highest IoU, the first of equals, and that IoU; -1 and 0 for none."""
    # With all labels alike, pairs are those of the same image.
    pairs = pairs_of_same_image_and_class(
        detections._replace(labels=np.ones_like(detections.labels)),
        objects._replace(labels=np.ones_like(objects.labels)),
    )
    is_other = detections.labels[pairs.detection_rows] != objects.labels[pairs.object_rows]
    pairs = Pairs(pairs.detection_rows[is_other], pairs.object_rows[is_other])
    pair_iou = iou_of_pairs(detections.boxes[pairs.detection_rows], objects.boxes[pairs.object_rows])
    # The sort is stable, and pairs come in the order of the objects.
    order = np.lexsort((-pair_iou, pairs.detection_rows))
    rows, first = np.unique(pairs.detection_rows[order], return_index=True)
    best = order[first]
    object_rows, iou = np.full(len(detections.labels), -1), np.zeros(len(detections.labels))
    object_rows[rows], iou[rows] = pairs.object_rows[best], pair_iou[best]
    return object_rows, iou


def _best_first(detections: DetectionRecords, is_meant: Bool[np.ndarray, " detections"]) -> Int[np.ndarray, " rows"]:
    rows = np.flatnonzero(is_meant)
    return rows[np.argsort(-detections.scores[rows], kind="stable")]


def _take(records: Records, rows: Int[np.ndarray, " rows"]) -> Records:
    return type(records)(*(column[rows] for column in records))


def _found_or_ignored(objects: ObjectRecords, errors: Errors) -> ObjectRecords:
    return _take(objects, np.flatnonzero(np.isin(errors.object_causes, (FOUND, IGNORED))))


def _count(errors: Errors, cause: str) -> int:
    if cause == FALSE_DETECTIONS:
        return int((~np.isin(errors.detection_causes, (TRUE, IGNORED))).sum())
    if cause == MISSES:
        return int((~np.isin(errors.object_causes, (FOUND, IGNORED))).sum())
    return int(((errors.object_causes if cause == MISSED else errors.detection_causes) == cause).sum())
