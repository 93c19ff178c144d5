"""The task of ``ssd-predict``: detect objects in pictures, and write them as JSON and drawings."""

import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from hydra.core.hydra_config import HydraConfig
from jaxtyping import UInt8
from omegaconf import DictConfig, ListConfig
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn, track
from rich.text import Text
from torch.utils.data import DataLoader, Dataset

from ssd_lightning.cli.screen import screen
from ssd_lightning.cli.sources import PictureFile, find_sources, shortened
from ssd_lightning.cli.weights import chosen_weights, load_chosen, moved
from ssd_lightning.data.augmentation.pipeline import resample
from ssd_lightning.data.augmentation.windows import WHOLE, Window
from ssd_lightning.data.pictures import PictureError, read_picture
from ssd_lightning.deploy.prediction import Found, Predictor, Resized, tile_windows, views_of
from ssd_lightning.deploy.video import Frame, Video, VideoWriter, require_av
from ssd_lightning.devices import free_cores, keep_freed_memory
from ssd_lightning.drawing import draw_boxes
from ssd_lightning.require import counted, require_number, require_whole_number
from ssd_lightning.run_folder import naming, replace_text

LARGEST_DRAWING = 1600
"""Longest side of a drawing in pixels. Larger pictures are reduced to it."""


class Loaded(NamedTuple):
    """The resized views of a picture, or the reason why it could not be read."""

    path: Path
    error: str = ""
    views: tuple[Resized, ...] = ()
    canvas: UInt8[np.ndarray, "height width 3"] | None = None
    """Pixels to draw boxes on."""


def predict(config: DictConfig) -> None:
    """Detect objects in everything that the source names, and write JSON, drawings and videos.

    Raises:
        PictureError: with the pictures that could not be read, after everything else is done.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    require_number("draw_threshold", config.draw_threshold, "[0, 1]")
    require_whole_number("batch_size", config.batch_size, 1)
    require_whole_number("frame_step", config.frame_step, 1)
    windows = tile_windows(rows_and_columns(config.tiles))
    if config.num_workers is not None:
        require_whole_number("num_workers", config.num_workers, 0)
    if config.max_megapixels is not None:
        require_number("max_megapixels", config.max_megapixels, "(0, inf)")
    with tempfile.TemporaryDirectory() as downloads:
        given = list(config.source) if isinstance(config.source, ListConfig) else [config.source]
        sources = find_sources(given, Path(downloads))
        if sources.videos:
            require_av()
        checkpoint = chosen_weights(config.checkpoint)
        detector = moved(load_chosen(checkpoint, config), config.device)
        keep_freed_memory()
        for source in sources.videos:
            predict_video(source, folder, detector, windows, config)
        if sources.pictures:
            predict_pictures(sources.pictures, folder, detector, windows, config)


def rows_and_columns(tiles: Any) -> tuple[int, int] | None:
    """Return the numbers in a value such as ``2x3``; None for null.

    Raises:
        ValueError: if it is something else.
    """
    if tiles is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", str(tiles))
    if found is None:
        raise ValueError(f"tiles: expected <rows>x<columns> or null, got {tiles}. Try tiles=2x2.")
    return int(found[1]), int(found[2])


def predict_pictures(
    pictures: list[PictureFile], folder: Path, detector: Predictor, windows: list[Window], config: DictConfig
) -> None:
    """Detect objects in pictures, and write ``predictions.json`` and drawings.

    Raises:
        PictureError: with the pictures that could not be read, after all other pictures are done.
    """
    paths = [picture.path for picture in pictures]
    loader = DataLoader(
        PicturesToPredict(
            paths,
            detector.image_size,
            detector.antialias,
            windows,
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
    names = dict(pictures)
    # Downloads lie in a temporary folder, whose name means nothing.
    local = [path for path, name in pictures if "://" not in name]
    root = Path(os.path.commonpath([path.parent for path in local])) if local else Path()
    console = screen()
    for batch in track(loader, description="Detecting", console=console, transient=True):
        readable = [loaded for loaded in batch if loaded.views]
        unreadable += [loaded for loaded in batch if not loaded.views]
        detected = detector.detect_views([loaded.views for loaded in readable], windows, config.batch_size)
        for loaded, found in zip(readable, detected, strict=True):
            image_id = len(images) + 1
            height, width = found.size
            images.append({"id": image_id, "file_name": names[loaded.path], "height": height, "width": width})
            annotations += found.to_coco(image_id, first_id=len(annotations) + 1)
            if config.draw:
                is_download = "://" in names[loaded.path]
                file = Path(loaded.path.name) if is_download else loaded.path.relative_to(root)
                _draw(folder / "drawings" / file, loaded, found, detector, config)
    content = {"images": images, "categories": categories(detector), "annotations": annotations}
    replace_text(folder / "predictions.json", json.dumps(content, indent=1) + "\n")

    confident = sum(entry["score"] >= config.draw_threshold for entry in annotations)
    console.print(
        f"{counted(len(images), 'picture')}, {counted(confident, 'detection')} with a score from "
        f"{config.draw_threshold:g}",
        highlight=False,
    )
    what = "predictions.json and drawings" if config.draw else "predictions.json"
    console.print(f"Results: {folder} ({what})", soft_wrap=True)
    if unreadable:
        # An exception, since sys.exit would also end the jobs of a sweep that come after this one.
        errors = "".join(f"\n  {loaded.error}" for loaded in unreadable)
        raise PictureError(f"{len(unreadable)} of {len(paths)} pictures could not be read:{errors}")


def categories(detector: Predictor) -> list[dict[str, Any]]:
    """Return the classes of a detector as COCO's categories."""
    return [{"id": label, "name": name} for label, name in enumerate(detector.classes, start=1)]


def predict_video(
    source: str | int, folder: Path, detector: Predictor, windows: list[Window], config: DictConfig
) -> None:
    """Detect objects in the frames of a video, and write a JSON line for each frame and a video of drawn frames.

    Both files hold what is done when the user or an error stops the command.
    """
    name = f"camera_{source}" if isinstance(source, int) else _quoted(Path(source.rstrip("/")).name)
    console = screen()
    counts = {"frames": 0, "broken": 0, "detections": 0}
    with ExitStack() as stack:
        video = stack.enter_context(Video(source))
        lines_path = free_name(folder / "videos" / f"{name}.jsonl")
        drawn_path = lines_path.with_suffix(".mp4")
        files = f"{lines_path} and {drawn_path.name}" if config.draw else lines_path
        # They run last, after the files are closed.
        stack.callback(lambda: console.print(f"Results: {files}", soft_wrap=True))
        stack.callback(lambda: console.print(_summary(name, counts, config), soft_wrap=True))
        with naming(lines_path):
            lines_path.parent.mkdir(parents=True, exist_ok=True)
            lines = stack.enter_context(lines_path.open("w", encoding="utf-8"))
        drawn = stack.enter_context(VideoWriter(drawn_path, video.rate / config.frame_step)) if config.draw else None
        progress = stack.enter_context(Progress(*PROGRESS, console=console, transient=True))
        task = progress.add_task(name, total=video.frames)
        frames = (frame for frame in video if frame.number % config.frame_step == 0)
        while batch := list(itertools.islice(frames, config.batch_size)):
            for frame, found in detect_in_frames(batch, detector, windows):
                counts["frames"] += 1
                with naming(lines_path):
                    lines.write(json.dumps(_line(frame, found), ensure_ascii=False) + "\n")
                    lines.flush()
                if frame.image is None or found is None:
                    counts["broken"] += 1
                    continue
                shown = found.where(found.scores >= config.draw_threshold)
                counts["detections"] += len(shown.scores)
                if drawn is not None:
                    pixels = draw_boxes(frame.image, shown.boxes, shown.labels, shown.scores, detector.classes)
                    with naming(drawn_path):
                        drawn.write(pixels, frame.seconds)
            progress.update(task, completed=batch[-1].number + 1)
    if not counts["frames"]:
        raise ValueError(f"source: expected a video with frames, got {source}, which has none")


def detect_in_frames(
    frames: list[Frame], detector: Predictor, windows: list[Window]
) -> Iterator[tuple[Frame, Found | None]]:
    """Yield frames of a video with their detections; None for a broken frame."""
    views = [
        views_of(frame.image, detector.image_size, detector.antialias, windows)
        for frame in frames
        if frame.image is not None
    ]
    found = iter(detector.detect_views(views, windows, len(frames)))
    for frame in frames:
        yield frame, None if frame.image is None else next(found)


class FramesPerSecond(ProgressColumn):
    """The speed of a video."""

    def render(self, task: Task) -> Text:
        """Return the number of frames per second, once it is known."""
        return Text("" if task.speed is None else f"{task.speed:.1f} frames/s")


PROGRESS = ("{task.description}", BarColumn(), MofNCompleteColumn(), FramesPerSecond(), TimeRemainingColumn())
"""Columns of the progress of a video."""


def _quoted(name: str) -> str:
    return shortened(quote(name, safe=" ", errors="surrogateescape"))


def free_name(path: Path) -> Path:
    """Return a path that does not exist: the given one, or one with a number before its suffix."""
    numbered = (path.with_name(f"{path.stem}_{number}{path.suffix}") for number in itertools.count(2))
    return path if not path.exists() else next(other for other in numbered if not other.exists())


def _line(frame: Frame, found: Found | None) -> dict[str, Any]:
    """Describe a frame in JSON."""
    at = {"frame": frame.number, "time": round(frame.seconds, 3)}
    if found is None:
        return {**at, "error": frame.error}
    detections = [
        {"category_id": entry["category_id"], "name": name, "bbox": entry["bbox"], "score": entry["score"]}
        for entry, name in zip(found.to_coco(), found.names, strict=True)
    ]
    return {**at, "height": found.size[0], "width": found.size[1], "detections": detections}


def _summary(name: str, counts: dict[str, int], config: DictConfig) -> str:
    broken = f", {counts['broken']} of them broken (see the lines with an error)" if counts["broken"] else ""
    return (
        f"{name}: {counted(counts['frames'], 'frame')}{broken}, "
        f"{counted(counts['detections'], 'detection')} with a score from {config.draw_threshold:g}"
    )


class PicturesToPredict(Dataset):
    """Picture files as a data set, resized to the network's input as in training."""

    def __init__(
        self,
        paths: list[Path],
        image_size: tuple[int, int],
        antialias: bool,
        windows: list[Window],
        with_canvas: bool,
        max_megapixels: float | None = None,
    ) -> None:
        self.paths = paths
        self.image_size = image_size
        self.antialias = antialias
        self.windows = windows
        self.with_canvas = with_canvas
        self.max_megapixels = max_megapixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Loaded:
        path = self.paths[index]
        try:
            views = views_of(path, self.image_size, self.antialias, self.windows, max_megapixels=self.max_megapixels)
            height, width = views[0].size
            scale = min(1.0, LARGEST_DRAWING / max(height, width))
            small = max(1, round(height * scale)), max(1, round(width * scale))
            canvas = None
            if self.with_canvas:
                canvas = resample(read_picture(path, small, self.max_megapixels), WHOLE, small)
        except PictureError as error:
            return Loaded(path, error=str(error))
        return Loaded(path, views=tuple(views), canvas=canvas)


def _draw(path: Path, loaded: Loaded, found: Found, detector: Predictor, config: DictConfig) -> None:
    assert loaded.canvas is not None
    shown = found.where(found.scores >= config.draw_threshold)
    scale = loaded.canvas.shape[1] / found.size[1]
    drawn = draw_boxes(loaded.canvas, shown.boxes * scale, shown.labels, shown.scores, detector.classes)
    # The suffix stays in the name, so that a.jpg and a.png get a drawing each.
    drawing = free_name(path.with_name(f"{shortened(path.name)}.jpg"))
    with naming(drawing):
        drawing.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn).save(drawing, quality=92)
