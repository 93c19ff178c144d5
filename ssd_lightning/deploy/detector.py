"""A detector as :func:`~ssd_lightning.training.checkpoint.load_detector` returns it."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ssd_lightning.deploy.prediction import Predictor
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.postprocess import PostProcess
from ssd_lightning.devices import choose_device
from ssd_lightning.structures import Detections, Predictions

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""The precisions of Lightning that prediction can use, and the type of autocast for each."""


@dataclass(frozen=True)
class Detector(Predictor):
    """A trained network with its post-processing and the names of its classes."""

    model: SSD
    """The network in evaluation mode. It is on the CPU until :meth:`Detector.to` moves it."""
    postprocess: PostProcess
    classes: tuple[str, ...]
    """Names of the object classes; label n is ``classes[n - 1]``."""
    precision: str = "32-true"
    """One of ``32-true``, ``bf16-mixed`` and ``16-mixed``; see :meth:`Detector.to`."""

    @property
    def settings(self) -> PostProcess:
        """The post-processing, which also merges the detections of tiles."""
        return self.postprocess

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network's input in pixels."""
        return self.model.image_size

    @property
    def antialias(self) -> bool:
        """True if pictures are resized with anti-aliasing, as in the training of the weights."""
        return self.model.antialias

    def to(self, device: str | torch.device, precision: str | None = None) -> "Detector":
        """Move the network to a device, as :meth:`torch.nn.Module.to` does, and return the detector.

        Args:
            device: a name such as ``cuda:1``, or ``auto`` for the best device of the machine.
            precision: ``32-true``, or ``bf16-mixed`` or ``16-mixed`` for autocast. ``None``: leave it as it is.

        Raises:
            ValueError: if the machine has no such device, or if the precision is another.
        """
        precision = self.precision if precision is None else precision
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision}")
        self.model.to(choose_device(str(device)))
        return replace(self, precision=precision)

    def run(self, images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]) -> Detections:
        """Detect objects in a batch of pictures at the network's input size.

        Args:
            images: levels in 0 … 255, red first, on any device.

        Returns:
            Detections on the device of the network, with boxes as fractions of the picture.

        Raises:
            ValueError: if the network is in training mode.
        """
        with torch.inference_mode():
            return self.postprocess(self.predictions(images), self.model.default_boxes)

    @torch.inference_mode()
    def predictions(
        self, images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
    ) -> Predictions:
        """Run the network alone, on its device and with the precision of the detector; see :meth:`run`."""
        require_evaluation_mode(self.model)
        device, dtype = self.model.default_boxes.device, PRECISIONS[self.precision]
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return self.model(images.to(device))


def require_evaluation_mode(model: SSD) -> None:
    """Refuse a network in training mode, whose batch norms would use the statistics of the given pictures.

    Raises:
        ValueError: if the network is in training mode.
    """
    if model.training:
        raise ValueError("model: expected evaluation mode, got training mode. Try detector.model.eval().")
