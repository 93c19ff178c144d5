"""Comparison of an exported file with the detector that it was made from."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ssd_lightning.deploy.detector import Detector
from ssd_lightning.deploy.export import INPUT, PROGRAM_METADATA, RAW_OUTPUTS, RawDetector, Scored
from ssd_lightning.deploy.onnx_detector import OnnxDetector, detections_in
from ssd_lightning.structures import Detections

LEAST_SCORE = 0.05
"""Score that a detection must exceed to be compared."""

LIMIT = 1e-3
"""Largest difference of an edge of a box, as a fraction of the picture, and of a score."""


class Agreement(NamedTuple):
    """The differences between an exported file and its detector, over detections above :data:`LEAST_SCORE`."""

    pictures: int
    detections: int
    """Number of detections that were compared; without post-processing, number of scores."""
    box_difference: float
    """Largest difference of an edge, as a fraction of the picture; 1 if a detection has no counterpart of its class."""
    score_difference: float
    """Largest difference of a score; 1 if a detection has no counterpart of its class."""

    @property
    def is_close(self) -> bool:
        """True if both differences are within :data:`LIMIT`."""
        return max(self.box_difference, self.score_difference) <= LIMIT


def compare_with_file(
    detector: Detector, exported: OnnxDetector, images: UInt8[Tensor, "batch 3 height width"]
) -> Agreement:
    """Run a detector and its exported file on pictures, and compare scores and boxes.

    Rounding can decide which of two boxes with almost the same score suppresses the other. So the results before
    suppression are compared first. The detections of the file are then compared with those that the detector's
    post-processing chooses from the file's own scores and boxes.

    Args:
        detector: on the CPU.
        exported: its file, with or without post-processing.
        images: at the network's input size.
    """
    with torch.inference_mode():
        expected = RawDetector(detector.model)(images)
    found = raw_outputs(exported.path, images)
    before = raw_agreement(expected, found)
    if exported.metadata["postprocess"] is None:
        return before
    chosen = detector.postprocess.choose(
        found.scores, lambda candidates: found.boxes.gather(1, candidates.unsqueeze(-1).expand(-1, -1, 4))
    )
    return worst_of(agreement(chosen, exported.run(images)), before)


def worst_of(one: Agreement, other: Agreement) -> Agreement:
    """Return the first agreement, with each difference replaced by the larger of both."""
    return one._replace(
        box_difference=max(one.box_difference, other.box_difference),
        score_difference=max(one.score_difference, other.score_difference),
    )


def compare_with_program(
    detector: Detector, path: Path, images: UInt8[Tensor, "batch 3 height width"]
) -> tuple[Agreement, dict[str, Any]]:
    """Run a detector and its file of :func:`~ssd_lightning.deploy.export.export_program`, and compare them.

    Returns:
        The largest differences, and the description in the file.
    """
    extra = {PROGRAM_METADATA: ""}
    program = torch.export.load(path, extra_files=extra).module()
    with torch.inference_mode():
        return raw_agreement(RawDetector(detector.model)(images), Scored(*program(images))), json.loads(
            extra[PROGRAM_METADATA]
        )


def compare_with_openvino(
    path: Path, exported: OnnxDetector, images: UInt8[Tensor, "batch 3 height width"]
) -> Agreement:
    """Run a file of :func:`~ssd_lightning.deploy.export.convert_to_openvino`, and compare it with its ONNX file.

    Both get the same pictures one by one, on the CPU and in float32.
    """
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = []
    for image in images.split(1):
        expected = exported.outputs(image)
        answer = compiled(np.ascontiguousarray(image))
        found = {name: np.array(answer[name]) for name in expected}
        if exported.metadata["postprocess"] is None:
            raw = (Scored(*map(torch.from_numpy, outputs.values())) for outputs in (expected, found))
            results.append(raw_agreement(*raw))
        else:
            results.append(agreement(detections_in(expected), detections_in(found)))
    numbers = np.array(results)
    return Agreement(len(images), int(numbers[:, 1].sum()), *numbers[:, 2:].max(axis=0).tolist())


def raw_outputs(path: Path, images: UInt8[Tensor, "batch 3 height width"]) -> Scored:
    """Run an exported file up to the scores and boxes before suppression, which a file with suppression hides."""
    import onnx
    import onnxruntime

    proto = onnx.load(path)
    shown = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in RAW_OUTPUTS
        if name not in shown
    )
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    scores, boxes = session.run(list(RAW_OUTPUTS), {INPUT: np.ascontiguousarray(images)})
    return Scored(torch.from_numpy(scores), torch.from_numpy(boxes))


def raw_agreement(expected: Scored, found: Scored) -> Agreement:
    """Compare scores and boxes of all default boxes."""
    counted = (expected.scores > LEAST_SCORE) | (found.scores > LEAST_SCORE)
    boxes = (expected.boxes - found.boxes).abs()[counted.any(dim=-1)]
    scores = (expected.scores - found.scores).abs()[counted]
    return Agreement(len(expected.scores), int(counted.sum()), _largest(boxes), _largest(scores))


def agreement(expected: Detections, found: Detections) -> Agreement:
    """Compare detections, each with the nearest one of its class on the other side.

    Ranks are not compared, since rounding may swap two detections whose scores are almost equal.
    """
    differences = []
    for mine, others in ((expected, found), (found, expected)):
        boxes = (mine.boxes.unsqueeze(2) - others.boxes.unsqueeze(1)).abs().amax(dim=-1)
        scores = (mine.scores.unsqueeze(2) - others.scores.unsqueeze(1)).abs()
        is_other = (mine.labels.unsqueeze(2) != others.labels.unsqueeze(1)) | ~others.valid.unsqueeze(1)
        nearest = torch.maximum(boxes, scores).masked_fill(is_other, torch.inf).argmin(dim=2, keepdim=True)
        both = torch.stack((boxes, scores), dim=-1).masked_fill(is_other.unsqueeze(-1), 1)
        pair = both.gather(2, nearest.unsqueeze(-1).expand(-1, -1, -1, 2)).squeeze(2)
        differences.append(pair[mine.valid & (mine.scores > LEAST_SCORE)])
    boxes, scores = torch.cat(differences).unbind(dim=1)
    return Agreement(len(expected.scores), len(differences[0]), _largest(boxes), _largest(scores))


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def generated_pictures(image_size: tuple[int, int], number: int = 4) -> UInt8[Tensor, "number 3 height width"]:
    """Return pictures of soft patches of random colours with some noise, the same in every call.

    Args:
        image_size: (height, width) in pixels.
        number: number of pictures.
    """
    rng = np.random.default_rng(0)
    height, width = image_size
    pictures = []
    for patches in rng.integers(0, 256, (number, 6, 6, 3), dtype=np.uint8):
        soft = np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC))
        noise = rng.normal(0, 8, soft.shape)
        pictures.append(np.clip(soft + noise, 0, 255).astype(np.uint8))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
