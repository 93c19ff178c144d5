"""The task of ``ssd-export``: write a detector as one file, and compare the file with the checkpoint."""

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra.core.hydra_config import HydraConfig
from jaxtyping import UInt8
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from ssd_lightning.cli.screen import screen
from ssd_lightning.cli.sources import find_pictures
from ssd_lightning.cli.weights import chosen_weights, load_chosen
from ssd_lightning.deploy.agreement import (
    LEAST_SCORE,
    LIMIT,
    Agreement,
    compare_with_file,
    compare_with_openvino,
    compare_with_program,
    generated_pictures,
    worst_of,
)
from ssd_lightning.deploy.detector import Detector
from ssd_lightning.deploy.export import convert_to_openvino, export_onnx, export_program, require_packages
from ssd_lightning.deploy.onnx_detector import OnnxDetector, whole_levels
from ssd_lightning.deploy.prediction import batch_of, views_of
from ssd_lightning.deploy.quantization import quantize_onnx
from ssd_lightning.require import counted
from ssd_lightning.run_folder import SCORE_NAMES, replace_text

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "openvino": ".xml"}
"""Kinds of files, and their suffixes."""


def export(config: DictConfig) -> None:
    """Write the file and its report, and print the largest differences from the checkpoint.

    Raises:
        ValueError: if the file finds something else than the checkpoint. Both files stay for inspection.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    path = _path(config, folder)
    paths = [] if config.source is None else find_pictures(_as_list(config.source))
    calibration = find_pictures(_as_list(config.calibration), "calibration") if config.int8 else []
    checkpoint = chosen_weights(config.checkpoint)
    detector = load_chosen(checkpoint, config)
    if not isinstance(detector, Detector):
        raise ValueError(f"checkpoint: expected a checkpoint, got {checkpoint}, which is an exported file")
    measure = scoring_on_data(config, detector, checkpoint, calibration) if config.get("data") else None
    # Pictures come first, since a damaged one is found in less time than the export takes.
    images = (
        resized_pictures(paths, detector.image_size, detector.antialias)
        if paths
        else generated_pictures(detector.image_size)
    )
    if config.format == "torch_export":
        export_program(detector, path)
        found, metadata = compare_with_program(detector, path, images)
    else:
        onnx_path = path.with_suffix(SUFFIXES["onnx"])
        if config.int8:
            with TemporaryDirectory() as temporary:  # Its file must not be taken for the one in 8 bits.
                export_onnx(detector, f"{temporary}/float.onnx", with_postprocess=not config.raw)
                pictures = (resized_pictures([one], detector.image_size, detector.antialias) for one in calibration)
                quantize_onnx(f"{temporary}/float.onnx", onnx_path, pictures)
        else:
            export_onnx(detector, onnx_path, with_postprocess=not config.raw)
        exported = OnnxDetector(onnx_path)
        found, metadata = compare_with_file(detector, exported, images), exported.metadata
        if config.format == "openvino":
            convert_to_openvino(onnx_path, path)
            found = worst_of(found, compare_with_openvino(path, exported, images))
    scores = measure(exported) if measure is not None else None
    report = path.with_suffix(".json")
    content = {
        "file": str(path),
        "format": config.format,
        "int8": config.int8,
        "checkpoint": str(checkpoint),
        "source": [str(picture) for picture in paths] or "generated",
        "calibration": [str(picture) for picture in calibration] if config.int8 else None,
        **found._asdict(),
        "least_score": LEAST_SCORE,
        "limit": None if config.int8 else LIMIT,
        "is_close": found.is_close,
        "scores": scores,
        "metadata": metadata,
    }
    replace_text(report, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    for line in (*sentences(found), *score_sentences(scores), f"Results: {path} (report: {report.name})"):
        screen().print(line, soft_wrap=True)
    # Rounding to 8 bits changes every score. Only scores on pictures with truth say what it costs.
    if config.int8 and scores is None:
        weights = shlex.quote(f"checkpoint={path.with_suffix('.onnx')}")
        screen().print(f"Next:    ssd-evaluate {weights} data=<the option of a data set>", soft_wrap=True)
    if not config.int8 and not found.is_close:
        raise ValueError(
            f"file: expected differences of at most {LIMIT:g} from {shlex.quote(str(checkpoint))}, got "
            f"{found.box_difference:.2g} of a box and {found.score_difference:.2g} of a score in {path}"
        )


def _path(config: DictConfig, folder: Path) -> Path:
    """Return the file to write, and refuse settings that do not fit the format."""
    if config.format not in SUFFIXES:
        raise ValueError(f"format: expected one of {', '.join(SUFFIXES)}, got {config.format}")
    if config.format != "torch_export":
        require_packages("onnx", "onnxscript", "onnxruntime")
    if config.format == "openvino":
        require_packages("openvino", extra="openvino")
    if config.format == "torch_export" and config.int8:
        raise ValueError(f"int8: expected false with format={config.format}, got true. Try format=onnx.")
    if config.get("data") and (config.format != "onnx" or config.raw):
        given = "raw=true" if config.raw else f"format={config.format}"
        raise ValueError(f"data: expected none with {given}, which cannot be scored. Try ssd-evaluate.")
    if config.split != "val" and not config.get("data"):
        raise ValueError(f"split: expected val without data, got {config.split}. Try data=<the option of a data set>.")
    if config.int8 == (config.calibration is None):
        raise ValueError(
            "calibration: expected pictures with int8=true, and null without it, got "
            f"{config.calibration} with int8={str(config.int8).lower()}"
        )
    suffix = SUFFIXES[config.format]
    path = folder / f"detector{suffix}" if config.file is None else Path(str(config.file)).expanduser()
    if path.suffix != suffix:
        raise ValueError(f"file: expected a name that ends with {suffix}, got {path}")
    return path


def scoring_on_data(
    config: DictConfig, detector: Detector, checkpoint: Path, calibration: list[Path]
) -> Callable[[OnnxDetector], dict[str, Any]]:
    """Open the data group, and return what scores a file and the checkpoint on it.

    Raises:
        ValueError: if the data cannot be used, or if pictures of the calibration are among those to score.
    """
    from ssd_lightning.cli.detect import open_pictures, scores_of

    pictures = open_pictures(config, detector, checkpoint)
    both = set(map(os.path.realpath, calibration)) & set(map(os.path.realpath, pictures.paths))
    if both:
        raise ValueError(
            f"calibration: expected other pictures than those that are scored, got {len(both)} of them, such as "
            f"{min(both)}. Try pictures of the training."
        )

    def measure(exported: OnnxDetector) -> dict[str, Any]:
        return {
            "split": config.split,
            "pictures": len(pictures),
            "checkpoint": scores_of(detector, pictures, config).compute(),
            "file": scores_of(exported, pictures, config).compute(),
        }

    return measure


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, ListConfig) else [value]


def sentences(found: Agreement) -> list[str]:
    """Describe an agreement for the terminal."""
    if not found.detections:
        return [
            f"{counted(found.pictures, 'picture')}, and nothing to compare: no score above {LEAST_SCORE:g}. "
            "Try source=photos."
        ]
    return [
        f"{counted(found.pictures, 'picture')}, {counted(found.detections, 'score')} above {LEAST_SCORE:g}. "
        "Largest differences from the "
        f"checkpoint: {found.box_difference:.2g} of a box, {found.score_difference:.2g} of a score"
    ]


def score_sentences(scores: dict[str, Any] | None) -> list[str]:
    """Describe the scores of a file beside those of its checkpoint."""
    if scores is None:
        return []
    before, after = scores["checkpoint"], scores["file"]
    each = (f"{SCORE_NAMES[key]} {before[key]:.3f} and {after[key]:.3f}" for key in ("map_50", "map"))
    pictures = counted(scores["pictures"], "picture")
    return [f"Checkpoint and file on the {pictures} of {scores['split']}: {', '.join(each)}"]


def resized_pictures(
    paths: list[Path], image_size: tuple[int, int], antialias: bool
) -> UInt8[Tensor, "number 3 height width"]:
    """Read pictures at the input size, in whole levels, as the exported file takes them."""
    images = batch_of([view for path in paths for view in views_of(path, image_size, antialias)])
    return whole_levels(images)
