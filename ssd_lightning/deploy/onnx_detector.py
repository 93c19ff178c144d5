"""Detectors that run from files of ``ssd-export``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ssd_lightning.deploy.export import CHECKSUM_KEY, INPUT, METADATA_KEY, is_damaged, require_packages
from ssd_lightning.deploy.prediction import Predictor
from ssd_lightning.detector.postprocess import PostProcess
from ssd_lightning.require import in_short, one_line, parse_json, require_names, require_switch
from ssd_lightning.run_folder import LARGEST_CONFIG
from ssd_lightning.structures import Detections, height_and_width

if TYPE_CHECKING:  # The package is in the extra "export".
    import onnxruntime


class Node(NamedTuple):
    """An input or output of a graph."""

    kind: str
    """ONNX Runtime's name of the type, such as ``tensor(uint8)``."""
    shape: tuple[int | None, ...]
    """The length of each axis; None: any."""

    def __str__(self) -> str:
        return f"{self.kind} of {' × '.join('N' if length is None else str(length) for length in self.shape)}"


class Description(NamedTuple):
    """The description of a detector in its file, after all of it was checked."""

    classes: tuple[str, ...]
    image_size: tuple[int, int]
    antialias: bool
    postprocess: PostProcess | None
    """None without post-processing."""
    outputs: dict[str, Node]


class OnnxDetector(Predictor):
    """A detector in an ONNX file of ``ssd-export``, which ONNX Runtime runs.

    Args:
        path: the file.
        providers: ONNX Runtime's names of devices, the preferred one first, such as ``CUDAExecutionProvider``.

    Attributes:
        path: the file.
        metadata: the description of the detector in the file.

    Raises:
        ValueError: with the file, if it is missing, damaged, or of another program; or if ONNX Runtime is missing.
    """

    def __init__(self, path: Path | str, providers: tuple[str, ...] = ("CPUExecutionProvider",)) -> None:
        require_packages("onnxruntime")
        if not Path(path).is_file():
            raise ValueError(f"checkpoint: expected a file of ssd-export, got {path}, which does not exist")
        self.path = Path(path)
        if is_damaged(path):
            raise ValueError(
                f"checkpoint: expected a file of ssd-export, got {path}, which is damaged or was changed: its checksum "
                f"is wrong. Try ssd-export again, or remove {CHECKSUM_KEY} from its metadata if you changed it."
            )
        with self.refusing_the_file():
            self.session = onnx_session(str(path), providers)
            stored = self.session.get_modelmeta().custom_metadata_map
            inputs, outputs = nodes(self.session.get_inputs()), nodes(self.session.get_outputs())
        if METADATA_KEY not in stored:
            raise ValueError(
                f"checkpoint: expected a file of ssd-export, got {path}, which lacks {METADATA_KEY!r} in its metadata"
            )
        try:
            self.metadata = _metadata(stored[METADATA_KEY])
            self._description = _described(self.metadata, inputs, outputs)
        except ValueError as error:
            raise ValueError(f"checkpoint: expected a file of ssd-export, got {path}: {one_line(error)}") from error
        self.classes = self._description.classes

    @property
    def settings(self) -> PostProcess:
        """The post-processing in the file, which also merges the detections of tiles."""
        if self._description.postprocess is None:
            raise ValueError(f"checkpoint: expected a file with post-processing, got {self.path} of raw=true")
        return self._description.postprocess

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network's input in pixels."""
        return self._description.image_size

    @property
    def antialias(self) -> bool:
        """True if pictures are resized with anti-aliasing, as in the training of the weights."""
        return self._description.antialias

    def outputs(self, images: UInt8[Tensor, "batch 3 height width"]) -> dict[str, np.ndarray]:
        """Return the outputs of the file by name, for pictures at the network's input size.

        Raises:
            ValueError: if the pictures have another size; or with the file, if its graph fails, or gives other shapes
                than it declares.
        """
        if tuple(images.shape[2:]) != self.image_size:
            raise ValueError(
                f"images: expected {self.image_size} pixels (height, width), got {tuple(images.shape[2:])}"
            )
        expected = self._description.outputs
        with self.refusing_the_file():
            found = self.session.run(list(expected), {INPUT: np.ascontiguousarray(images)})
        # ONNX Runtime only warns of other shapes.
        for (name, node), values in zip(expected.items(), found, strict=True):
            lengths = zip((len(images), *node.shape[1:]), values.shape, strict=False)
            if values.ndim != len(node.shape) or any(length not in (None, own) for length, own in lengths):
                raise ValueError(
                    f"checkpoint: expected {name}: {node} from {self.path}, got {' × '.join(map(str, values.shape))}"
                )
        return dict(zip(expected, found, strict=True))

    def run(self, images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]) -> Detections:
        """Detect objects in a batch of pictures at the network's input size.

        Args:
            images: levels in 0 … 255, red first. Fractions are rounded, because the file takes whole levels.

        Raises:
            ValueError: with the file, if it was exported without post-processing, or if its graph gives no detections.
        """
        self.require_postprocess()
        return self.checked(detections_in(self.outputs(whole_levels(images))))

    def checked(self, found: Detections) -> Detections:
        """Return detections of the file's graph, which may be a stranger's.

        Raises:
            ValueError: with the file, if there are labels without a class, boxes or scores that are none, or numbers
                that are not finite. With NaN among the weights, all scores are NaN, and none of them is valid.
        """
        if not all(bool(values.isfinite().all()) for values in (found.boxes, found.scores)):
            raise ValueError(f"checkpoint: expected finite boxes and scores, got NaN or infinity from {self.path}")
        labels, boxes, scores = found.labels[found.valid], found.boxes[found.valid], found.scores[found.valid]
        if not bool(((labels >= 1) & (labels <= len(self.classes))).all()):
            raise ValueError(f"checkpoint: expected labels of 1 … {len(self.classes)}, got others from {self.path}")
        is_inside = (boxes >= 0) & (boxes <= 1) & (boxes[:, [2, 3, 2, 3]] >= boxes[:, [0, 1, 0, 1]])
        if not bool(is_inside.all() and ((scores > 0) & (scores <= 1)).all()):
            raise ValueError(f"checkpoint: expected boxes and scores in 0 … 1, got others from {self.path}")
        return found

    def require_postprocess(self) -> None:
        """Refuse a file without post-processing.

        Raises:
            ValueError: with the file.
        """
        _ = self.settings

    @contextmanager
    def refusing_the_file(self) -> Iterator[None]:
        """Name the file in the errors of ONNX Runtime, which has a class of its own for each kind of damage.

        Raises:
            ValueError: with the file and the reason.
        """
        try:
            yield
        except Exception as error:
            raise ValueError(
                f"checkpoint: expected a file of ssd-export, got {self.path}, which ONNX Runtime refuses: "
                f"{one_line(error)}"
            ) from error


def onnx_session(
    model: str | bytes, providers: tuple[str, ...] = ("CPUExecutionProvider",), threads: int = 0
) -> "onnxruntime.InferenceSession":
    """Load a model into ONNX Runtime.

    Args:
        model: name of a file, or the content of one.
        providers: see :class:`OnnxDetector`.
        threads: number of CPU threads; 0: one for each core.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # All that it would print is in its exceptions, too.
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=list(providers))


def whole_levels(
    images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"],
) -> UInt8[Tensor, "batch 3 height width"]:
    """Round the levels of pictures to whole ones, which exported files take."""
    return images if images.dtype == torch.uint8 else images.round().to(torch.uint8)


def detections_in(outputs: dict[str, np.ndarray]) -> Detections:
    """Return the outputs of an exported file with post-processing, by name, as detections."""
    found = {name: torch.from_numpy(values) for name, values in outputs.items()}
    valid = torch.arange(found["scores"].shape[1]) < found["count"].unsqueeze(1)
    return Detections(found["boxes"], found["labels"], found["scores"], valid)


def nodes(arguments: Sequence[Any]) -> dict[str, Node]:
    """Return the inputs or outputs of a session by name."""
    return {
        argument.name: Node(argument.type, tuple(d if isinstance(d, int) else None for d in argument.shape))
        for argument in arguments
    }


def _metadata(text: str) -> dict[str, Any]:
    if len(text) > LARGEST_CONFIG:
        raise ValueError(f"metadata: expected at most {LARGEST_CONFIG} characters, got {len(text)}")
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"metadata: expected JSON, got an error: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"metadata: expected a mapping, got {in_short(content)}")
    return content


def _described(metadata: dict[str, Any], inputs: dict[str, Node], outputs: dict[str, Node]) -> Description:
    """Check the metadata of a file, and its graph against them."""
    missing = [key for key in ("classes", "image_size", "antialias", "postprocess", "outputs") if key not in metadata]
    if missing:
        raise ValueError(f"metadata: expected {missing[0]}, got none")
    classes = require_names("classes", metadata["classes"])
    height, width = height_and_width(metadata["image_size"])
    require_switch("antialias", metadata["antialias"])
    settings = _settings(metadata["postprocess"])
    if settings is not None:
        number = settings.max_detections
        expected = {
            "boxes": Node("tensor(float)", (None, number, 4)),
            "labels": Node("tensor(int64)", (None, number)),
            "scores": Node("tensor(float)", (None, number)),
            "count": Node("tensor(int64)", (None,)),
        }
    else:
        shape = outputs["all_scores"].shape if "all_scores" in outputs else ()
        number_of_boxes = shape[1] if len(shape) == 3 else None
        expected = {
            "all_scores": Node("tensor(float)", (None, number_of_boxes, len(classes))),
            "all_boxes": Node("tensor(float)", (None, number_of_boxes, 4)),
        }
    named = metadata["outputs"]
    if not isinstance(named, dict) or list(named) != list(expected):
        raise ValueError(f"outputs: expected {', '.join(expected)}, got {in_short(named)}")
    _refuse_other_nodes("inputs", inputs, {INPUT: Node("tensor(uint8)", (None, 3, height, width))})
    _refuse_other_nodes("outputs", outputs, expected)
    return Description(classes, (height, width), metadata["antialias"], settings, expected)


def _settings(stored: Any) -> PostProcess | None:
    if stored is None:
        return None
    if not isinstance(stored, dict):
        raise ValueError(f"postprocess: expected a mapping, got {in_short(stored)}")
    try:
        return PostProcess(**stored)
    except (TypeError, ValueError) as error:  # A TypeError names a setting that is not known.
        raise ValueError(f"postprocess: {error}") from error


def _refuse_other_nodes(key: str, found: dict[str, Node], expected: dict[str, Node]) -> None:
    if found.keys() != expected.keys():
        raise ValueError(f"{key}: expected {', '.join(expected)}, got {', '.join(map(in_short, found)) or 'none'}")
    for name, node in expected.items():
        if found[name] != node:
            raise ValueError(f"{key}: expected {name}: {node}, got {found[name]}")
