"""Detectors that run from files of ``ssd-export``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ssd_lightning.deploy.export import FINAL_OUTPUTS, INPUT, METADATA_KEY, require_packages
from ssd_lightning.deploy.prediction import Predictor
from ssd_lightning.detector.postprocess import PostProcess
from ssd_lightning.structures import Detections

if TYPE_CHECKING:  # The package is in the extra "export".
    import onnxruntime


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
        try:
            self.session = onnx_session(str(path), providers)
        except Exception as error:  # ONNX Runtime has a class of its own for each kind of damage.
            reason = " ".join(str(error).split())
            raise ValueError(
                f"checkpoint: expected a file of ssd-export, got {path}, which ONNX Runtime refuses: {reason}"
            ) from error
        self.path = Path(path)
        self.metadata = _metadata(self.session.get_modelmeta().custom_metadata_map, path)
        self.classes = tuple(self.metadata["classes"])

    @property
    def settings(self) -> PostProcess:
        """The post-processing in the file, which also merges the detections of tiles."""
        self.require_postprocess()
        return PostProcess(**self.metadata["postprocess"])

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network's input in pixels."""
        height, width = self.metadata["image_size"]
        return height, width

    @property
    def antialias(self) -> bool:
        """True if pictures are resized with anti-aliasing, as in the training of the weights."""
        return bool(self.metadata["antialias"])

    def outputs(self, images: UInt8[Tensor, "batch 3 height width"]) -> dict[str, np.ndarray]:
        """Return the outputs of the file by name, for pictures at the network's input size."""
        names = list(self.metadata["outputs"])
        return dict(zip(names, self.session.run(names, {INPUT: np.ascontiguousarray(images)}), strict=True))

    def run(self, images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]) -> Detections:
        """Detect objects in a batch of pictures at the network's input size.

        Args:
            images: levels in 0 … 255, red first. Fractions are rounded, because the file takes whole levels.

        Raises:
            ValueError: if the file was exported without post-processing.
        """
        self.require_postprocess()
        return detections_in(self.outputs(whole_levels(images)))

    def require_postprocess(self) -> None:
        """Refuse a file without post-processing.

        Raises:
            ValueError: with the file.
        """
        if list(self.metadata["outputs"]) != list(FINAL_OUTPUTS):
            raise ValueError(f"checkpoint: expected a file with post-processing, got {self.path} of raw=true")


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


def _metadata(stored: dict[str, str], path: Path | str) -> dict[str, Any]:
    if METADATA_KEY not in stored:
        raise ValueError(
            f"checkpoint: expected a file of ssd-export, got {path}, which lacks {METADATA_KEY!r} in its metadata"
        )
    return dict(json.loads(stored[METADATA_KEY]))
