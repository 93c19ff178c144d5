"""The task of ``ssd-benchmark``: measure the speed of detectors by stage, side by side."""

import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig
from PIL import Image
from rich.progress import Progress
from rich.table import Table

from ssd_lightning.cli.screen import screen
from ssd_lightning.cli.sources import find_pictures
from ssd_lightning.cli.weights import chosen_weights, load_chosen
from ssd_lightning.deploy.agreement import generated_pictures
from ssd_lightning.deploy.benchmark import (
    RUNTIMES,
    WHOLE,
    Measured,
    Runner,
    Setting,
    Size,
    benchmark_runners,
    onnx_runner,
    size_of,
    torch_runner,
)
from ssd_lightning.deploy.benchmark_figure import draw_stages
from ssd_lightning.deploy.detector import PRECISIONS, Detector
from ssd_lightning.deploy.export import export_onnx, require_packages
from ssd_lightning.deploy.onnx_detector import OnnxDetector
from ssd_lightning.detector.postprocess import PostProcess
from ssd_lightning.detector.presets import build_model, model_names
from ssd_lightning.devices import keep_freed_memory
from ssd_lightning.drawing import save_figure
from ssd_lightning.require import require_whole_number
from ssd_lightning.run_folder import replace_text

GENERATED_SIZE = (375, 500)
"""(height, width) in pixels of generated pictures, as of most pictures of VOC."""

JPEG_QUALITY = 90
"""Quality of the files of generated pictures."""


class Asked(NamedTuple):
    """The values of the keys that take one value or a list."""

    runtimes: list[str] | None
    """None: eager for checkpoints, onnxruntime for exported files."""
    precisions: list[str]
    threads: list[int]
    batch_sizes: list[int]


class Loaded(NamedTuple):
    """A detector to measure."""

    name: str
    """The name of the detector on the command line."""
    detector: Detector | OnnxDetector


def benchmark(config: DictConfig) -> None:
    """Measure all settings, print a table, and write ``benchmark.json`` and a figure."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    asked = _asked(config)
    sources = None if config.source is None else find_pictures(_as_list(config.source))
    detectors = list(_load(config))
    for name, detector in detectors:
        if isinstance(detector, OnnxDetector) and "onnxruntime" not in (asked.runtimes or ["onnxruntime"]):
            raise ValueError(f"runtimes: expected onnxruntime for the exported file {name}, got {asked.runtimes}")
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        paths = _write_pictures(Path(temporary), max(asked.batch_sizes)) if sources is None else sources
        runners = [runner for loaded in detectors for runner in _runners(loaded, asked, config.device, Path(temporary))]
        with Progress(console=screen(), transient=True) as progress:
            task = progress.add_task("Measuring", total=len(runners) * (config.warm_up + config.repeats))
            results = benchmark_runners(runners, paths, config.warm_up, config.repeats, lambda: progress.advance(task))
    sizes = {name: size_of(detector.model) for name, detector in detectors if isinstance(detector, Detector)}
    content = {
        "machine": _machine(),
        "pictures": "generated" if sources is None else [str(path) for path in sources],
        "warm_up": config.warm_up,
        "repeats": config.repeats,
        "detectors": [_as_json(loaded, sizes.get(loaded.name)) for loaded in detectors],
        "results": [_result_as_json(result) for result in results],
    }
    replace_text(folder / "benchmark.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    labels = _labels([result.setting for result in results])
    save_figure(draw_stages(results, labels), folder / "figures" / "benchmark.png")
    console = screen()
    console.print(_size_table(detectors, sizes))
    console.print(_stage_table(results, config.warm_up, config.repeats))
    console.print(_speed_table(results, labels))
    for line in (f"Results: {folder} (look at figures/benchmark.png)",):
        console.print(line, soft_wrap=True)


def _asked(config: DictConfig) -> Asked:
    require_whole_number("warm_up", config.warm_up, 1)
    require_whole_number("repeats", config.repeats, 1)
    require_whole_number("num_classes", config.num_classes, 1)
    if config.checkpoint is None and config.model_name is None:
        raise ValueError(
            "checkpoint, model_name: expected at least one of them, got neither. Try model_name=ssd300_vgg16."
        )
    asked = Asked(
        None if config.runtimes is None else _as_list(config.runtimes),
        _as_list(config.precisions),
        [torch.get_num_threads()] if config.threads is None else _as_list(config.threads),
        _as_list(config.batch_sizes),
    )
    choices = {
        "runtimes": (asked.runtimes, RUNTIMES),
        "precisions": (asked.precisions, PRECISIONS),
        "model_name": (None if config.model_name is None else _as_list(config.model_name), model_names()),
    }
    for key, (values, known) in choices.items():
        wrong = [] if values is None else [value for value in values if value not in known]
        if wrong or values == []:
            raise ValueError(f"{key}: expected one or several of {', '.join(known)}, got {wrong[0] if wrong else '[]'}")
    for key, numbers in (("threads", asked.threads), ("batch_sizes", asked.batch_sizes)):
        if not numbers:
            raise ValueError(f"{key}: expected one or several whole numbers, got []")
        for number in numbers:
            require_whole_number(key, number, 1)
    if "onnxruntime" in (asked.runtimes or []):
        require_packages("onnx", "onnxscript", "onnxruntime")
    return asked


def _load(config: DictConfig) -> Iterator[Loaded]:
    """Load the detectors of ``checkpoint``, then build those of ``model_name``."""
    for given in [] if config.checkpoint is None else _as_list(config.checkpoint):
        detector = load_chosen(chosen_weights(given), config)
        if isinstance(detector, Detector):
            detector = detector.to(config.device)
        yield Loaded(str(given), detector)
    classes = tuple(f"class {label}" for label in range(1, config.num_classes + 1))
    for name in [] if config.model_name is None else _as_list(config.model_name):
        torch.manual_seed(0)
        model = build_model(name, config.num_classes).eval()
        yield Loaded(name, Detector(model, PostProcess(**config.postprocess), classes).to(config.device))


def _runners(loaded: Loaded, asked: Asked, device: str, temporary: Path) -> Iterator[Runner]:
    """Yield a runner for each setting of a detector."""
    name, detector = loaded
    is_exported = isinstance(detector, OnnxDetector)
    for runtime in ["onnxruntime"] if is_exported else asked.runtimes or ["eager"]:
        if runtime == "onnxruntime":
            if device not in ("auto", "cpu"):
                raise ValueError(f"device: expected auto or cpu with onnxruntime, got {device}")
            if isinstance(detector, Detector):
                path = temporary / "detector.onnx"
                export_onnx(detector, path)
                exported = OnnxDetector(path)
            else:
                exported = detector
            for threads in asked.threads:
                for batch in asked.batch_sizes:
                    yield onnx_runner(exported, name, threads, batch)
        else:
            assert isinstance(detector, Detector)
            for precision in asked.precisions:
                for threads in asked.threads:
                    for batch in asked.batch_sizes:
                        yield torch_runner(detector, name, runtime == "compile", precision, threads, batch)


def _write_pictures(folder: Path, number: int) -> list[Path]:
    paths = [folder / f"{row}.jpg" for row in range(number)]
    for path, pixels in zip(paths, generated_pictures(GENERATED_SIZE, number), strict=True):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path, quality=JPEG_QUALITY)
    return paths


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, ListConfig) else [value]


def _machine() -> dict[str, Any]:
    cpus = Path("/proc/cpuinfo")
    names = [line for line in cpus.read_text().splitlines() if line.startswith("model name")] if cpus.exists() else []
    return {
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": version("torch"),
    }


def _as_json(loaded: Loaded, size: Size | None) -> dict[str, Any]:
    """Describe a detector. The parameters of an exported file are not known, since exporting merges layers."""
    return {
        "name": loaded.name,
        "image_size": list(loaded.detector.image_size),
        "classes": len(loaded.detector.classes),
        "parameters": None if size is None else size.parameters,
        "gmacs": None if size is None else size.multiplications / 1e9,
        "default_boxes": None if size is None else size.default_boxes,
    }


def _result_as_json(result: Measured) -> dict[str, Any]:
    return {
        **result.setting._asdict(),
        "images_per_second": result.images_per_second,
        "ratio": result.ratio,
        "memory_bytes": result.memory,
        "median_ms": {stage: 1000 * result.median(stage) for stage in result.seconds},
        "p95_ms": {stage: 1000 * result.p95(stage) for stage in result.seconds},
        "seconds": result.seconds,
    }


def _labels(settings: Sequence[Setting]) -> list[str]:
    """Name each setting by the values that differ between the settings; a single one by its detector."""
    differing = [name for name in Setting._fields if len({getattr(setting, name) for setting in settings}) > 1]
    return [
        ", ".join(_shown(name, getattr(setting, name)) for name in differing or ["detector"]) for setting in settings
    ]


def _shown(name: str, value: Any) -> str:
    return f"{value} threads" if name == "threads" else f"batch {value}" if name == "batch_size" else str(value)


def _size_table(detectors: Sequence[Loaded], sizes: dict[str, Size]) -> Table:
    table = Table(title="Detectors")
    table.add_column("detector", overflow="fold")
    for column in ("input", "parameters", "GMACs", "default boxes"):
        table.add_column(column, justify="right")
    for name, detector in dict(detectors).items():
        height, width = detector.image_size
        size = sizes.get(name)
        shown = (
            [f"{size.parameters / 1e6:.2f} M", f"{size.multiplications / 1e9:.2f}", str(size.default_boxes)]
            if size
            else []
        )
        table.add_row(name, f"{height}×{width}", *shown)
    return table


def _speed_table(results: Sequence[Measured], labels: Sequence[str]) -> Table:
    table = Table(title="Speed from picture files to boxes, by medians")
    table.add_column("", justify="right")
    table.add_column("setting", overflow="fold")
    for column in ("images/s", "ratio", "MB"):
        table.add_column(column, justify="right")
    for number, (label, result) in enumerate(zip(labels, results, strict=True), start=1):
        memory = "" if result.memory is None else f"{result.memory / 1e6:.0f}"
        table.add_row(str(number), label, f"{result.images_per_second:.1f}", f"{result.ratio:.2f}", memory)
    return table


def _stage_table(results: Sequence[Measured], warm_up: int, repeats: int) -> Table:
    table = Table(title=f"Milliseconds of a batch, medians of {repeats} repeats after {warm_up} to warm up")
    for column in ("", *results[0].seconds, "p95"):
        table.add_column(column, justify="right")
    for number, result in enumerate(results, start=1):
        times = [*map(result.median, result.seconds), result.p95(WHOLE)]
        table.add_row(str(number), *(f"{1000 * seconds:.1f}" for seconds in times))
    return table
