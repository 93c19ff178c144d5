"""Export of a detector to one file: pixels in, detections out."""

import hashlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ssd_lightning.deploy.detector import Detector, require_evaluation_mode
from ssd_lightning.detector.boxes import decode
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.postprocess import PostProcess, class_scores
from ssd_lightning.run_folder import naming, written_whole

if TYPE_CHECKING:  # The package is in the extra "export".
    import onnx

METADATA_KEY = "ssd_lightning"
"""Key of the JSON text in the file's metadata: classes, input size, resizing, post-processing, outputs, version."""

CHECKSUM_KEY = f"{METADATA_KEY}.sha256"
"""Key of the SHA-256 of all bytes before it, which is the last entry of the file's metadata."""

INPUT = "images"
FINAL_OUTPUTS = {
    "boxes": "float32 (N, max_detections, 4), best first: left, top, right, bottom as fractions of the picture",
    "labels": "int64 (N, max_detections): label n is classes[n - 1]; 0 is padding",
    "scores": "float32 (N, max_detections)",
    "count": "int64 (N): number of detections of each picture; the rows after them are padding",
}
RAW_OUTPUTS = {
    "all_scores": "float32 (N, default boxes, classes), without background",
    "all_boxes": "float32 (N, default boxes, 4): left, top, right, bottom as fractions of the picture",
}
"""Outputs without post-processing."""


def require_packages(*names: str, extra: str = "export") -> None:
    """Refuse to continue without some packages of an extra.

    Raises:
        ValueError: naming those that are missing.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"format: expected the package {missing[0]}, got none. Try uv sync --extra {extra}.")


class Scored(NamedTuple):
    """Scores and boxes of all default boxes, before suppression."""

    scores: Float[Tensor, "batch boxes classes"]
    """Scores by object class, without background."""
    boxes: Float[Tensor, "batch boxes 4"]
    """xyxy, clipped to the picture."""


class RawDetector(nn.Module):
    """The network and the part of post-processing that has no loop: softmax and decoding."""

    def __init__(self, model: SSD) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Scored:
        """Compute the scores and the boxes of all default boxes."""
        predictions = self.model(images)
        boxes = decode(predictions.offsets.float(), self.model.default_boxes).clamp(0, 1)
        return Scored(class_scores(predictions), boxes)


def export_onnx(detector: Detector, path: Path | str, with_postprocess: bool = True) -> None:
    """Write a detector as one ONNX file, which needs neither torch nor this project to run.

    The input ``images`` is uint8 (N, 3, H, W), red first, for any N. Pictures have the network's input size;
    normalization is part of the file. The file's metadata hold the JSON text :data:`METADATA_KEY` and a checksum.

    Args:
        detector: in evaluation mode. The file computes in float32, whatever the precision of the detector.
        path: file to write.
        with_postprocess: include non-maximum suppression and the choice of the best detections; the outputs are
            :data:`FINAL_OUTPUTS`. Otherwise they are :data:`RAW_OUTPUTS`.

    Raises:
        ValueError: if a package of the extra ``export`` is missing, or if the network cannot be exported.
        OSError: if the file cannot be written.
    """
    require_packages("onnx", "onnxscript")
    import onnx

    require_evaluation_mode(detector.model)
    proto = _network(detector.model)
    for node in proto.graph.node:
        # They tell the paths of source files on this machine.
        del node.metadata_props[:]
    if with_postprocess:
        boxes, classes = len(detector.model.default_boxes), len(detector.classes)
        text = suppression_text(detector.postprocess, boxes, classes, proto.ir_version, proto.opset_import[0].version)
        suppression = onnx.parser.parse_model(text)
        proto = onnx.compose.merge_models(proto, suppression, io_map=[(name, name) for name in RAW_OUTPUTS])
        # Both parts name the version of the operators. Tools such as the quantizer expect it once.
        versions = {entry.domain: entry.version for entry in proto.opset_import}
        del proto.opset_import[:]
        proto.opset_import.extend(onnx.helper.make_opsetid(*entry) for entry in versions.items())
    _describe(proto, detector, with_postprocess)
    onnx.checker.check_model(proto)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.write(with_checksum(proto))


def with_checksum(proto: "onnx.ModelProto") -> bytes:
    """Return the content of an ONNX file that ends with its checksum. ONNX itself has none."""
    content = proto.SerializeToString()
    return content + _checksum(content)


def is_damaged(path: Path | str) -> bool:
    """Return True if the bytes of an ONNX file do not fit its checksum, and False if the file has none."""
    content = Path(path).read_bytes()
    length = len(_checksum(b""))
    return content[-length:-64] == _checksum(b"")[:-64] and content[-length:] != _checksum(content[:-length])


def _checksum(content: bytes) -> bytes:
    """Return the entry of the checksum of a content. Fields of ONNX's format may follow each other in any order."""
    key = CHECKSUM_KEY.encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([64]) + hashlib.sha256(content).hexdigest().encode()
    return b"\x72" + bytes([len(entry)]) + entry


class PlainDetector(RawDetector):
    """The same with a plain tuple, which a program without this project can load."""

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Compute the scores and the boxes of all default boxes."""
        return tuple(super().forward(images))


PROGRAM_METADATA = f"{METADATA_KEY}.json"
"""Name of the description in a file of :func:`export_program`."""


def export_program(detector: Detector, path: Path | str) -> None:
    """Write a detector without suppression as a program of :func:`torch.export.save`, which needs torch alone to run.

    The input is uint8 (N, 3, H, W), red first, for any N; the outputs are :data:`RAW_OUTPUTS`, in this order. The extra
    file :data:`PROGRAM_METADATA` describes the detector.

    Args:
        detector: in evaluation mode. The program computes in float32, on the device of the detector.
        path: file to write.

    Raises:
        ValueError: if the network cannot be exported.
        OSError: if the file cannot be written.
    """
    require_evaluation_mode(detector.model)
    size, device = detector.image_size, detector.model.default_boxes.device
    pictures = torch.zeros(2, 3, *size, dtype=torch.uint8, device=device)
    try:
        with quiet():
            program = torch.export.export(
                PlainDetector(detector.model).eval(),
                (pictures,),
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            )
    except Exception as error:  # torch raises many types for what it cannot trace.
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model: expected a network that torch.export takes, got an error: {reason}") from error
    content = io.BytesIO()
    description = json.dumps(_description(detector, with_postprocess=False), ensure_ascii=False)
    torch.export.save(program, content, extra_files={PROGRAM_METADATA: description})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.write(content.getvalue())


def convert_to_openvino(path: Path | str, target: Path | str) -> None:
    """Write an exported ONNX file again in the format of OpenVINO, with the same inputs, outputs and description.

    Args:
        path: a file of :func:`export_onnx`.
        target: file to write, which ends with ``.xml``. The weights are written beside it, with the suffix ``.bin``.

    Raises:
        ValueError: if OpenVINO is missing.
    """
    require_packages("openvino", extra="openvino")
    import onnx
    import openvino

    model = openvino.convert_model(path)
    about = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    model.set_rt_info(about[METADATA_KEY], METADATA_KEY)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    with naming(target):
        openvino.save_model(model, target, compress_to_fp16=False)


def _network(model: SSD) -> "onnx.ModelProto":
    """Return the graph from pictures to the scores and boxes of all default boxes."""
    pictures = torch.zeros(2, 3, *model.image_size, dtype=torch.uint8, device=model.default_boxes.device)
    try:
        with quiet():
            program = torch.onnx.export(
                RawDetector(model).eval(),
                (pictures,),
                dynamo=True,
                input_names=[INPUT],
                output_names=list(RAW_OUTPUTS),
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"model: expected a network that torch.onnx can export, got an error: {reason}") from error
    assert program is not None
    return program.model_proto


def _describe(proto: "onnx.ModelProto", detector: Detector, with_postprocess: bool) -> None:
    import onnx

    content = _description(detector, with_postprocess)
    proto.producer_name, proto.producer_version = "ssd_lightning", content["version"]
    proto.graph.name = "detector"
    onnx.helper.set_model_props(proto, {METADATA_KEY: json.dumps(content, ensure_ascii=False)})


def _description(detector: Detector, with_postprocess: bool) -> dict[str, Any]:
    return {
        "version": version("ssd-lightning"),
        "classes": list(detector.classes),
        "image_size": list(detector.image_size),
        "antialias": detector.antialias,
        "input": "uint8 (N, 3, H, W), red first, resized to image_size (height, width) with bilinear interpolation, "
        f"{'with' if detector.antialias else 'without'} anti-aliasing",
        "postprocess": vars(detector.postprocess) if with_postprocess else None,
        "outputs": FINAL_OUTPUTS if with_postprocess else RAW_OUTPUTS,
    }


def suppression_text(settings: PostProcess, boxes: int, classes: int, ir_version: int, opset: int) -> str:
    """Return the steps of :class:`~ssd_lightning.detector.postprocess.PostProcess` after decoding as an ONNX graph.

    The order of equal scores is the same: by class, then by default box. Scores outside the candidates and the
    survivors become 0, which no threshold lets through. So do those up to the threshold before the candidates are
    chosen: ONNX Runtime passes over a 0 at once, and its TopK takes a tenth of the time.

    Args:
        settings: settings of the post-processing.
        boxes: number of default boxes.
        classes: number of object classes.
        ir_version: version of ONNX's format.
        opset: version of ONNX's operators.
    """
    number, most = settings.max_detections, min(settings.candidates_per_class, boxes)
    if settings.class_agnostic:
        by_class = """
            last_axis = Constant <value = int64[1] {2}> ()
            likeliest = ArgMax <axis = 2, keepdims = 0> (all_scores)
            highest = ReduceMax <keepdims = 1> (all_scores, last_axis)
            by_class = Transpose <perm = [0, 2, 1]> (highest)"""
        labels = "label = GatherElements <axis = 1> (likeliest, box)"
    else:
        by_class = "by_class = Transpose <perm = [0, 2, 1]> (all_scores)"
        labels = "label = Div (position, number_of_boxes)"
    return f"""
        <ir_version: {ir_version}, opset_import: ["" : {opset}]>
        suppression (float[batch, {boxes}, {classes}] all_scores, float[batch, {boxes}, 4] all_boxes)
            => (float[batch, {number}, 4] boxes, int64[batch, {number}] labels,
                float[batch, {number}] scores, int64[batch] count)
        {{
            zero = Constant <value = float {{0}}> ()
            one = Constant <value = int64 {{1}}> ()
            last = Constant <value = int64[1] {{-1}}> ()
            number_of_boxes = Constant <value = int64 {{{boxes}}}> ()
            most_candidates = Constant <value = int64[1] {{{most}}}> ()
            most_detections = Constant <value = int64[1] {{{number}}}> ()
            iou_threshold = Constant <value = float[1] {{{float(settings.nms_threshold)}}}> ()
            score_threshold = Constant <value = float[1] {{{float(settings.score_threshold)}}}> ()
            in_one_row = Constant <value = int64[2] {{0, -1}}> ()
            room = Constant <value = int64[4] {{0, 0, 0, {number}}}> ()

            {by_class}
            likely = ThresholdedRelu <alpha = {float(settings.score_threshold)}> (by_class)
            candidate_scores, candidate = TopK <axis = 2, sorted = 0> (likely, most_candidates)
            nothing = Mul (by_class, zero)
            candidates = ScatterElements <axis = 2> (nothing, candidate, candidate_scores)
            survivor = NonMaxSuppression (all_boxes, candidates, most_detections, iou_threshold, score_threshold)
            survivor_scores = GatherND (candidates, survivor)
            survivors = ScatterND (nothing, survivor, survivor_scores)

            survivors_in_one_row = Reshape (survivors, in_one_row)
            enough = Pad (survivors_in_one_row, room)
            scores, position = TopK <axis = 1> (enough, most_detections)
            is_valid = Greater (scores, zero)
            valid = Cast <to = 7> (is_valid)
            count = ReduceSum <keepdims = 0> (valid, last)
            box = Mod (position, number_of_boxes)
            {labels}
            label_from_one = Add (label, one)
            labels = Mul (label_from_one, valid)
            box_column = Unsqueeze (box, last)
            best_boxes = GatherND <batch_dims = 1> (all_boxes, box_column)
            valid_numbers = Cast <to = 1> (is_valid)
            valid_column = Unsqueeze (valid_numbers, last)
            boxes = Mul (best_boxes, valid_column)
        }}
    """


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter, which reports each step, and prints the network where it fails."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(former)
