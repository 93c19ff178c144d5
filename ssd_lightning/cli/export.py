"""The task of ``ssd-export``: write a detector as one file, and compare the file with the checkpoint."""

import json
import shlex
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from jaxtyping import UInt8
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from ssd_lightning.cli.screen import screen
from ssd_lightning.cli.sources import find_pictures
from ssd_lightning.cli.weights import chosen_weights, load_chosen
from ssd_lightning.deploy.agreement import LEAST_SCORE, LIMIT, Agreement, compare_with_file, generated_pictures
from ssd_lightning.deploy.detector import Detector
from ssd_lightning.deploy.export import export_onnx, require_packages
from ssd_lightning.deploy.onnx_detector import OnnxDetector, whole_levels
from ssd_lightning.deploy.prediction import batch_of, views_of
from ssd_lightning.run_folder import replace_text


def export(config: DictConfig) -> None:
    """Write the file and its report, and print the largest differences from the checkpoint.

    Raises:
        ValueError: if the file finds something else than the checkpoint. Both files stay for inspection.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    if config.format != "onnx":
        raise ValueError(f"format: expected onnx, got {config.format}")
    require_packages("onnx", "onnxscript", "onnxruntime")
    path = folder / "detector.onnx" if config.file is None else Path(str(config.file)).expanduser()
    if path.suffix != ".onnx":
        raise ValueError(f"file: expected a name that ends with .onnx, got {path}")
    sources = list(config.source) if isinstance(config.source, ListConfig) else [config.source]
    paths = [] if config.source is None else find_pictures(sources)
    checkpoint = chosen_weights(config.checkpoint)
    detector = load_chosen(checkpoint, config)
    if not isinstance(detector, Detector):
        raise ValueError(f"checkpoint: expected a checkpoint, got {checkpoint}, which is an exported file")
    # Pictures come first, since a damaged one is found in less time than the export takes.
    images = (
        resized_pictures(paths, detector.image_size, detector.antialias)
        if paths
        else generated_pictures(detector.image_size)
    )
    export_onnx(detector, path, with_postprocess=not config.raw)
    exported = OnnxDetector(path)
    found = compare_with_file(detector, exported, images)
    report = path.with_suffix(".json")
    content = {
        "file": str(path),
        "checkpoint": str(checkpoint),
        "source": [str(picture) for picture in paths] or "generated",
        **found._asdict(),
        "least_score": LEAST_SCORE,
        "limit": LIMIT,
        "is_close": found.is_close,
        "metadata": exported.metadata,
    }
    replace_text(report, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    for line in (*sentences(found), f"Results: {path} (report: {report.name})"):
        screen().print(line, soft_wrap=True)
    if not found.is_close:
        raise ValueError(
            f"file: expected differences of at most {LIMIT:g} from {shlex.quote(str(checkpoint))}, got "
            f"{found.box_difference:.2g} of a box and {found.score_difference:.2g} of a score in {path}"
        )


def sentences(found: Agreement) -> list[str]:
    """Describe an agreement for the terminal."""
    if not found.detections:
        return [
            f"{found.pictures} pictures, and nothing to compare: no score above {LEAST_SCORE:g}. Try source=photos."
        ]
    return [
        f"{found.pictures} pictures, {found.detections} scores above {LEAST_SCORE:g}. Largest differences from the "
        f"checkpoint: {found.box_difference:.2g} of a box, {found.score_difference:.2g} of a score"
    ]


def resized_pictures(
    paths: list[Path], image_size: tuple[int, int], antialias: bool
) -> UInt8[Tensor, "number 3 height width"]:
    """Read pictures at the input size, in whole levels, as the exported file takes them."""
    images = batch_of([view for path in paths for view in views_of(path, image_size, antialias)])
    return whole_levels(images)
