"""The part of an exported file after the network, against a slow loop with torchvision's suppression."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torchvision.ops import nms

from ssd_lightning.deploy.export import suppression_text
from ssd_lightning.detector.postprocess import PostProcess

Row = tuple[int, float, list[float]]
"""Label, score and box of a detection."""


def suppressed(settings: PostProcess, scores: torch.Tensor, boxes: torch.Tensor) -> tuple[list[list[Row]], dict]:
    """Run the graph; return the detections of each picture, and the outputs with their padding."""
    graph = onnx.parser.parse_model(suppression_text(settings, scores.shape[1], scores.shape[2], 10, 20))
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    names = ["boxes", "labels", "scores", "count"]
    values = session.run(names, {"all_scores": scores.numpy(), "all_boxes": boxes.numpy()})
    outputs = dict(zip(names, values, strict=True))
    rows = [
        [
            (int(outputs["labels"][picture, row]), float(outputs["scores"][picture, row]), edges)
            for row, edges in enumerate(outputs["boxes"][picture, :count].tolist())
        ]
        for picture, count in enumerate(outputs["count"])
    ]
    return rows, outputs


def by_loop(settings: PostProcess, scores: torch.Tensor, boxes: torch.Tensor) -> list[list[Row]]:
    pictures = []
    for picture_scores, picture_boxes in zip(scores, boxes, strict=True):
        found: list[Row] = []
        labels = torch.arange(1, scores.shape[2] + 1)
        columns = [(label, picture_scores[:, label - 1]) for label in labels.tolist()]
        if settings.class_agnostic:
            columns = [(0, picture_scores.max(dim=1).values)]
        for label, column in columns:
            order = column.argsort(descending=True, stable=True)[: settings.candidates_per_class]
            order = order[column[order] > settings.score_threshold]
            for row in order[nms(picture_boxes[order], column[order], settings.nms_threshold)].tolist():
                of_box = label or int(picture_scores[row].argmax()) + 1
                found.append((of_box, float(column[row]), picture_boxes[row].tolist()))
        found.sort(key=lambda row: -row[1])
        pictures.append(found[: settings.max_detections])
    return pictures


def random_case(batch: int, boxes: int, classes: int, ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(batch, boxes, classes, generator=generator)
    if ties:
        scores = (scores * 8).round() / 8
    corner = torch.rand(batch, boxes, 2, generator=generator) * 0.7
    size = torch.rand(batch, boxes, 2, generator=generator) * 0.3
    return scores, torch.cat((corner, corner + size), dim=-1)


SETTINGS = {
    "defaults": PostProcess(),
    "class_agnostic": PostProcess(class_agnostic=True, score_threshold=0.6),
    "few_candidates": PostProcess(candidates_per_class=7),
    "few_detections": PostProcess(max_detections=3),
    "more_detections_than_boxes": PostProcess(max_detections=1000),
    "every_score": PostProcess(score_threshold=0),
    "no_suppression": PostProcess(nms_threshold=1),
    "small_numbers": PostProcess(score_threshold=1e-7, nms_threshold=1e-7),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_detections_are_those_of_a_loop(settings: PostProcess, ties: bool, batch: int):
    scores, boxes = random_case(batch, 60, 4, ties)
    found, outputs = suppressed(settings, scores, boxes)
    expected = by_loop(settings, scores, boxes)
    assert all(expected)
    assert found == expected
    assert outputs["boxes"].shape == (batch, settings.max_detections, 4)
    for picture, count in enumerate(outputs["count"]):
        for name in ("boxes", "labels", "scores"):
            assert not outputs[name][picture, count:].any()


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize(("boxes", "classes"), [(1, 1), (5, 1), (1, 3)])
def test_few_boxes_and_classes(boxes: int, classes: int, class_agnostic: bool):
    settings = PostProcess(class_agnostic=class_agnostic)
    case = random_case(2, boxes, classes, ties=False)
    assert suppressed(settings, *case)[0] == by_loop(settings, *case)


def test_pictures_without_a_detection():
    scores, boxes = random_case(3, 20, 2, ties=False)
    scores[1] = 0.01  # It must be exceeded.
    found, outputs = suppressed(PostProcess(score_threshold=0.01), scores, boxes)
    assert [bool(picture) for picture in found] == [True, False, True]
    assert outputs["count"].dtype == np.int64
    assert not outputs["boxes"][1].any()
    scores[:] = 0
    assert suppressed(PostProcess(score_threshold=0), scores, boxes)[0] == [[], [], []]


def test_empty_boxes_do_not_suppress_each_other():
    scores = torch.tensor([[[0.9], [0.8], [0.7]]])
    boxes = torch.tensor([[[0.0, 0.5, 0.0, 0.6], [0.0, 0.5, 0.0, 0.6], [0.1, 0.1, 0.4, 0.4]]])
    assert [row[1] for row in suppressed(PostProcess(), scores, boxes)[0][0]] == pytest.approx([0.9, 0.8, 0.7])
