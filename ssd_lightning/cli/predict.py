"""The task of ``ssd-predict``: detect objects in pictures, and write them as JSON and drawings."""

import glob
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hydra.core.hydra_config import HydraConfig
from jaxtyping import UInt8
from omegaconf import DictConfig, ListConfig
from PIL import Image
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from ssd_lightning.cli.screen import screen
from ssd_lightning.cli.weights import chosen_weights, load_chosen
from ssd_lightning.data.augmentation.pipeline import WHOLE, resample
from ssd_lightning.data.folders import is_picture, visible_files
from ssd_lightning.data.pictures import PictureError, read_picture
from ssd_lightning.deploy.detector import Detector
from ssd_lightning.deploy.prediction import Found, Predictor, Resized, resize
from ssd_lightning.devices import free_cores, keep_freed_memory
from ssd_lightning.drawing import draw_boxes
from ssd_lightning.require import require_number, require_whole_number
from ssd_lightning.run_folder import naming, replace_text

LARGEST_DRAWING = 1600
"""Longest side of a drawing in pixels. Larger pictures are reduced to it."""


class Loaded(NamedTuple):
    """A resized picture, or the reason why it could not be read."""

    path: Path
    error: str = ""
    resized: Resized | None = None
    canvas: UInt8[np.ndarray, "height width 3"] | None = None
    """Pixels to draw boxes on."""


def predict(config: DictConfig) -> None:
    """Detect objects in all pictures of the source, and write ``predictions.json`` and drawings.

    Raises:
        PictureError: with the pictures that could not be read, after all other pictures are done.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    paths = find_pictures(list(config.source) if isinstance(config.source, ListConfig) else [config.source])
    require_number("draw_threshold", config.draw_threshold, "[0, 1]")
    require_whole_number("batch_size", config.batch_size, 1)
    if config.num_workers is not None:
        require_whole_number("num_workers", config.num_workers, 0)
    if config.max_megapixels is not None:
        require_number("max_megapixels", config.max_megapixels, "(0, inf)")
    checkpoint = chosen_weights(config.checkpoint)
    detector = load_chosen(checkpoint, config)
    if isinstance(detector, Detector):
        detector = detector.to(config.device)
    elif config.device not in ("auto", "cpu"):
        raise ValueError(f"device: expected auto or cpu with an exported file, got {config.device}")
    keep_freed_memory()
    loader = DataLoader(
        PicturesToPredict(
            paths,
            detector.image_size,
            detector.antialias,
            with_canvas=config.draw,
            max_megapixels=config.max_megapixels,
        ),
        batch_size=config.batch_size,
        num_workers=free_cores() if config.num_workers is None else config.num_workers,
        collate_fn=list,
    )
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    unreadable: list[Loaded] = []
    root = Path(os.path.commonpath([path.parent for path in paths]))
    console = screen()
    for batch in track(loader, description="Detecting", console=console, transient=True):
        readable = [loaded for loaded in batch if loaded.resized is not None]
        unreadable += [loaded for loaded in batch if loaded.resized is None]
        for loaded, found in zip(readable, detector.detect([loaded.resized for loaded in readable]), strict=True):
            image_id = len(images) + 1
            height, width = found.size
            images.append({"id": image_id, "file_name": str(loaded.path), "height": height, "width": width})
            annotations += found.to_coco(image_id, first_id=len(annotations) + 1)
            if config.draw:
                _draw(folder / "drawings" / loaded.path.relative_to(root), loaded, found, detector, config)
    categories = [{"id": label, "name": name} for label, name in enumerate(detector.classes, start=1)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    replace_text(folder / "predictions.json", json.dumps(content, indent=1) + "\n")

    confident = sum(entry["score"] >= config.draw_threshold for entry in annotations)
    console.print(
        f"{len(images)} pictures, {confident} detections with a score from {config.draw_threshold:g}", highlight=False
    )
    what = "predictions.json and drawings" if config.draw else "predictions.json"
    console.print(f"Results: {folder} ({what})", soft_wrap=True)
    if unreadable:
        # An exception, since sys.exit would also end the jobs of a sweep that come after this one.
        errors = "".join(f"\n  {loaded.error}" for loaded in unreadable)
        raise PictureError(f"{len(unreadable)} of {len(paths)} pictures could not be read:{errors}")


class PicturesToPredict(Dataset):
    """Picture files as a data set, resized to the network's input as in training."""

    def __init__(
        self,
        paths: list[Path],
        image_size: tuple[int, int],
        antialias: bool,
        with_canvas: bool,
        max_megapixels: float | None = None,
    ) -> None:
        self.paths = paths
        self.image_size = image_size
        self.antialias = antialias
        self.with_canvas = with_canvas
        self.max_megapixels = max_megapixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Loaded:
        path = self.paths[index]
        try:
            resized = resize(path, self.image_size, self.antialias, max_megapixels=self.max_megapixels)
            height, width = resized.size
            scale = min(1.0, LARGEST_DRAWING / max(height, width))
            small = max(1, round(height * scale)), max(1, round(width * scale))
            canvas = None
            if self.with_canvas:
                canvas = resample(read_picture(path, small, self.max_megapixels), WHOLE, small)
        except PictureError as error:
            return Loaded(path, error=str(error))
        return Loaded(path, resized=resized, canvas=canvas)


def find_pictures(sources: list[Any]) -> list[Path]:
    """Return the picture files of some sources, each file once.

    Args:
        sources: files, patterns such as ``photos/*.jpg``, and folders, which are searched with their subfolders
            as :func:`~ssd_lightning.data.folders.visible_files` does.

    Raises:
        ValueError: with the source that has no pictures.
    """
    found: dict[Path, Path] = {}
    # Hydra turns a file name of digits into a number.
    if not sources or any(source in ("", None) or not isinstance(source, str | int) for source in sources):
        raise ValueError(f"source: expected a picture, a folder, a pattern, or a list of them, got {sources}")
    for source in map(str, sources):
        path = Path(source).expanduser()
        if path.is_file():
            new = [path]
        elif path.is_dir():
            new = [path.joinpath(*file.split("/")) for file in visible_files(path, "source") if is_picture(file)]
        else:
            new = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not new:
            what = "a folder with pictures" if path.is_dir() else "a file, folder or pattern that exists"
            raise ValueError(f"source: expected {what}, got {source}")
        for file in new:
            found.setdefault(file.resolve(), file.absolute())
    return list(found.values())


def _draw(path: Path, loaded: Loaded, found: Found, detector: Predictor, config: DictConfig) -> None:
    assert loaded.canvas is not None
    shown = found.where(found.scores >= config.draw_threshold)
    scale = loaded.canvas.shape[1] / found.size[1]
    drawn = draw_boxes(loaded.canvas, shown.boxes * scale, shown.labels, shown.scores, detector.classes)
    # The suffix stays in the name, so that a.jpg and a.png get a drawing each.
    drawing = path.with_name(f"{path.name}.jpg")
    with naming(drawing):
        drawing.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn).save(drawing, quality=92)
