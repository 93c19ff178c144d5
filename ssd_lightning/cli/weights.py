"""The checkpoint or exported file that a command loads."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ssd_lightning.cli.screen import screen
from ssd_lightning.deploy.detector import Detector
from ssd_lightning.deploy.onnx_detector import OnnxDetector
from ssd_lightning.training.checkpoint import load_detector
from ssd_lightning.training.pretrained import weights_file


def chosen_weights(given: Any) -> Path:
    """Return the file of ``checkpoint=…``, and print it if a run folder or a name was given.

    Raises:
        ValueError: if the value is no text, or names nothing.
    """
    path = weights_file(given, "checkpoint")
    if path != Path(given).expanduser():
        screen().print(f"Weights: {path}", soft_wrap=True)
    return path


def load_chosen(path: Path, config: DictConfig) -> Detector | OnnxDetector:
    """Load the detector of a command from a checkpoint, or from a file of ``ssd-export``.

    Args:
        path: the file, from :func:`chosen_weights`.
        config: the config of the command, with ``postprocess`` and ``trusted_packages``.

    Raises:
        ValueError: with the file, if it is damaged or of another program; or if settings of post-processing are given
            for an exported file.
    """
    if path.suffix != ".onnx":
        return load_detector(path, dict(config.postprocess), config.trusted_packages)
    if config.postprocess:
        raise ValueError(
            f"postprocess: expected no value with an exported file, which has its own, got {dict(config.postprocess)}. "
            "Try ssd-export with these settings, or checkpoint=<run folder>."
        )
    return OnnxDetector(path)


def moved(detector: Detector | OnnxDetector, device: str) -> Detector | OnnxDetector:
    """Move a detector to the device of ``device=…``, and return it.

    Raises:
        ValueError: if the machine has no such device, or if an exported file should leave the CPU.
    """
    if isinstance(detector, Detector):
        return detector.to(device)
    if device not in ("auto", "cpu"):
        raise ValueError(f"device: expected auto or cpu with an exported file, got {device}")
    return detector
