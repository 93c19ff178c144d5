"""Speed of detectors by stage, from picture files to boxes, measured side by side."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ssd_lightning.data.pictures import PictureError
from ssd_lightning.deploy.detector import Detector
from ssd_lightning.deploy.export import FINAL_OUTPUTS, INPUT, RAW_OUTPUTS, require_packages
from ssd_lightning.deploy.onnx_detector import OnnxDetector, detections_in, onnx_session, whole_levels
from ssd_lightning.deploy.prediction import Found, Predictor, batch_of, decode
from ssd_lightning.detector.model import SSD
from ssd_lightning.devices import return_freed_memory
from ssd_lightning.structures import Detections

RUNTIMES = ("eager", "compile", "onnxruntime")
"""Ways to run a detector: torch, torch with compilation, and its exported file on the CPU."""

EXPORTED_PRECISION = "as exported"
"""Precision of an exported file, which is part of the file."""

WHOLE = "whole"
"""Name of the time from the picture files to the boxes, beside the names of :class:`Stages`."""


class Setting(NamedTuple):
    """One way to run a detector."""

    detector: str
    """Name of the detector."""
    runtime: str
    """One of :data:`RUNTIMES`."""
    device: str
    precision: str
    """One of Lightning's names, or :data:`EXPORTED_PRECISION`."""
    threads: int
    """Number of CPU threads of the network and of post-processing."""
    batch_size: int


class Stages(NamedTuple):
    """Seconds that a batch spends in each stage. Each stage begins where the one before ends."""

    decode: float
    """Reading and decoding the picture files, one after another."""
    resize: float
    """Resizing the pictures, one after another, and joining them to a batch."""
    network: float
    """Normalization, network and, on a GPU, the way of the batch to it."""
    postprocess: float
    """Turning the outputs of the network into boxes in pixels of each picture."""


class Runner(NamedTuple):
    """A detector that is ready to run in one setting, in two steps."""

    setting: Setting
    detector: Predictor
    network: Callable[[Any], Any]
    postprocess: Callable[[Any], Detections]


class Run(NamedTuple):
    """One batch of a runner."""

    stages: Stages
    found: list[Found]


class Measured(NamedTuple):
    """The result of a setting."""

    setting: Setting
    seconds: dict[str, list[float]]
    """Seconds of each repeat, by stage; :data:`WHOLE` is their sum."""
    memory: int | None
    """Bytes that the first batch added to the memory in use, at most; None on systems that do not report it."""
    ratio: float
    """Speed in pictures per second divided by that of the first setting: the median over the repeats."""

    def median(self, stage: str = WHOLE) -> float:
        """Return the median seconds of a batch in a stage."""
        return statistics.median(self.seconds[stage])

    def p95(self, stage: str = WHOLE) -> float:
        """Return the seconds below which 95 of 100 batches stay in a stage."""
        return float(np.percentile(self.seconds[stage], 95))

    @property
    def images_per_second(self) -> float:
        """Number of pictures per second at the median of the whole."""
        return self.setting.batch_size / self.median()


class Size(NamedTuple):
    """The size of a network."""

    parameters: int
    multiplications: int
    """Number of multiply-accumulates for one picture."""
    default_boxes: int


def size_of(model: SSD) -> Size:
    """Count the parameters, multiply-accumulates and default boxes of a network."""
    device = model.default_boxes.device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *model.image_size, device=device))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # A multiply-accumulate is two floating-point operations.
    return Size(parameters, counter.get_total_flops() // 2, len(model.default_boxes))


def torch_runner(detector: Detector, name: str, compiled: bool, precision: str, threads: int, batch: int) -> Runner:
    """Return a detector as torch runs it, on its device.

    Args:
        detector: in evaluation mode.
        name: name of the detector.
        compiled: compile the network into one graph, in the first batch.
        precision: a key of :data:`~ssd_lightning.deploy.detector.PRECISIONS`.
        threads: number of CPU threads.
        batch: number of pictures in a batch.
    """
    model = copy.copy(detector.model)  # The weights are shared.
    if compiled:
        model.compile(fullgraph=True)
    mine = replace(detector, model=model, precision=precision)
    device = str(model.default_boxes.device)
    setting = Setting(name, "compile" if compiled else "eager", device, precision, threads, batch)
    return Runner(setting, mine, mine.predictions, lambda found: mine.postprocess(found, model.default_boxes))


def onnx_runner(exported: OnnxDetector, name: str, threads: int, batch: int) -> Runner:
    """Return an exported file as ONNX Runtime runs it on the CPU, in two parts: the network, and its post-processing.

    Raises:
        ValueError: if the file has no post-processing or another graph, or if the package onnx is missing.
    """
    require_packages("onnx")
    import onnx

    exported.require_postprocess()
    steps = []
    with exported.refusing_the_file():
        extractor = onnx.utils.Extractor(onnx.load(exported.path))
        for inputs, outputs in (([INPUT], list(RAW_OUTPUTS)), (list(RAW_OUTPUTS), list(FINAL_OUTPUTS))):
            session = onnx_session(extractor.extract_model(inputs, outputs).SerializeToString(), threads=threads)
            steps.append((session, inputs, outputs))

    def run(step: int, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        session, inputs, outputs = steps[step]
        with exported.refusing_the_file():
            return session.run(outputs, dict(zip(inputs, values, strict=True)))

    return Runner(
        Setting(name, "onnxruntime", "cpu", EXPORTED_PRECISION, threads, batch),
        exported,
        lambda images: run(0, [np.ascontiguousarray(whole_levels(images))]),
        lambda raw: exported.checked(detections_in(dict(zip(FINAL_OUTPUTS, run(1, raw), strict=True)))),
    )


def run_once(runner: Runner, paths: Sequence[Path]) -> Run:
    """Detect objects in one batch of picture files, and measure each stage.

    Raises:
        PictureError: if a file cannot be read; the message names the file.
    """
    detector, device = runner.detector, torch.device(runner.setting.device)
    batch = [paths[row % len(paths)] for row in range(runner.setting.batch_size)]
    least = detector.image_size if detector.antialias else None
    with _threads(runner.setting.threads):
        times = [_now(device)]
        decoded = [decode(path, least) for path in batch]
        times.append(_now(device))
        resized = [picture.resize(detector.image_size, detector.antialias) for picture in decoded]
        images = batch_of(resized)
        times.append(_now(device))
        predicted = runner.network(images)
        times.append(_now(device))
        found = detector.in_pixels(runner.postprocess(predicted), resized)
        times.append(_now(device))
    return Run(Stages(*np.diff(times).tolist()), found)


def benchmark_runners(
    runners: Sequence[Runner],
    paths: Sequence[Path],
    warm_up: int,
    repeats: int,
    report: Callable[[], object] = lambda: None,
) -> list[Measured]:
    """Measure all runners in turns, so that a slow minute of the machine meets all of them.

    Args:
        runners: the first one is the reference of the ratios.
        paths: picture files. A batch takes the first ones, and begins again after the last one.
        warm_up: number of batches of each runner before the measurement, at least 1.
        repeats: number of measured batches of each runner.
        report: is called after each batch.
    """
    memory = []
    for runner in runners:
        memory.append(added_memory(torch.device(runner.setting.device), partial(_first_run, runner, paths)))
        report()
    stages: list[list[Stages]] = [[] for _ in runners]
    for number in range(1, warm_up + repeats):
        # Every second round runs backwards: no runner always follows the same one.
        for row in range(len(runners))[:: 1 if number % 2 else -1]:
            measured = run_once(runners[row], paths).stages
            if number >= warm_up:
                stages[row].append(measured)
            report()
    results = []
    reference = _seconds_per_picture(runners[0], stages[0])
    for runner, mine, added in zip(runners, stages, memory, strict=True):
        ratios = [theirs / own for theirs, own in zip(reference, _seconds_per_picture(runner, mine), strict=True)]
        seconds = {name: [getattr(one, name) for one in mine] for name in Stages._fields}
        seconds[WHOLE] = [sum(one) for one in mine]
        results.append(Measured(runner.setting, seconds, added, statistics.median(ratios)))
    return results


def _first_run(runner: Runner, paths: Sequence[Path]) -> None:
    """Run the first batch, in which a network is compiled.

    Raises:
        ValueError: if torch cannot compile it.
    """
    try:
        run_once(runner, paths)
    except PictureError:
        raise
    except Exception as error:  # A missing compiler, an unsupported operation and others have classes of their own.
        if runner.setting.runtime != "compile":
            raise
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"runtimes: expected a network that torch.compile takes, got an error: {reason}") from error


def _seconds_per_picture(runner: Runner, stages: Sequence[Stages]) -> list[float]:
    return [sum(one) / runner.setting.batch_size for one in stages]


def _now(device: torch.device) -> float:
    """Return the time in seconds, after the work of a device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let torch use a number of CPU threads."""
    former = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(former)


RESIDENT_PEAK = Path("/proc/self/clear_refs")
"""File of Linux. A process that writes 5 to it resets the peak of its resident memory (proc(5))."""


def added_memory(device: torch.device, work: Callable[[], object]) -> int | None:
    """Return the bytes by which some work raised the memory in use at most, or None if the system does not report it.

    On a GPU, memory is counted that torch allocates; on a CPU, the resident memory of this process.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or not RESIDENT_PEAK.exists():
        work()
        return None
    return_freed_memory()
    RESIDENT_PEAK.write_text("5")
    before = _resident_peak()
    work()
    return _resident_peak() - before


def _resident_peak() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
