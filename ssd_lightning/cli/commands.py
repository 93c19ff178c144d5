"""The commands and their entry points. Only Hydra is imported here, so that ``--help`` answers at once.

Each entry point composes its config and then calls the function of the same name in the module of the same name:
``ssd-predict`` calls :func:`ssd_lightning.cli.predict.predict`.
"""

from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ssd_lightning.cli.app import run
from ssd_lightning.cli.help import Command
from ssd_lightning.cli.run_folders import holding_folders

TRAIN = Command(
    "ssd-train",
    "train",
    "train, score and draw a Single Shot MultiBox Detector",
    [
        "ssd-train                                        TinySSD on generated bananas, without a download",
        "ssd-train trainer.max_epochs=12 optimizer.lr=2e-3",
        "ssd-train model=ssdlite320_mobilenet_v2 optimizer=adamw",
        "ssd-train data=voc_folder data.root=<folder>     your own pictures; also data=yolo, csv, coco",
        "ssd-train loss=focal matcher=ignore_band",
        "ssd-train -m loss=multibox,focal seed=0,1,2      six runs",
        "ssd-train experiment=banana_d2l                  the recipe of d2l.ai",
        "ssd-train pretrained=ssd300_vgg16_coco           start from a detector of torchvision",
        "ssd-train resume=runs/banana_tiny/<time>         continue an interrupted run",
        "ssd-train resume_sweep=runs/banana_tiny/sweep_<time>",
    ],
)
EVALUATE = Command(
    "ssd-evaluate",
    "evaluate",
    "compute VOC07, VOC12 and COCO scores and confusions",
    [
        "ssd-evaluate checkpoint=runs/banana_tiny/<time>",
        "ssd-evaluate checkpoint=best.ckpt data=banana",
        "ssd-evaluate checkpoint=<run folder> split=test  the pictures of the test",
        "ssd-evaluate checkpoint=best.ckpt postprocess.nms_threshold=0.6",
        "ssd-evaluate detections=runs/banana_tiny/<time>  the detections of a run, scored again without a model",
        "ssd-evaluate detections=<run folder> iou_threshold=0.3 score_threshold=0.05",
        "ssd-evaluate -m detections=<run folder> iou_threshold=0.3,0.5,0.75",
    ],
    ("checkpoint",),
)
PREDICT = Command(
    "ssd-predict",
    "predict",
    "detect objects in pictures, folders, videos and streams; write JSON and drawings",
    [
        "ssd-predict checkpoint=runs/banana_tiny/<time> source=photo.jpg",
        "ssd-predict ssd300_vgg16_coco photo.jpg          a detector of torchvision, without a training",
        "ssd-predict checkpoint=best.ckpt source=photos draw_threshold=0.3",
        "ssd-predict checkpoint=best.ckpt 'source=photos/*.png' draw=false",
        "ssd-predict best.ckpt clip.mp4 frame_step=2      a video; a number is a camera, and rtsp://… a stream",
    ],
    ("checkpoint", "source"),
    several_words=True,
)
EXPORT = Command(
    "ssd-export",
    "export",
    "write a detector as one file for other programs, and compare the file with the checkpoint",
    [
        "ssd-export checkpoint=runs/banana_tiny/<time>/checkpoints/best.ckpt",
        "ssd-export checkpoint=best.ckpt file=banana.onnx source=photos    compared on your own pictures",
        "ssd-export checkpoint=best.ckpt postprocess.score_threshold=0.3   only detections above this score",
        "ssd-export checkpoint=best.ckpt raw=true                          scores and boxes before suppression",
        "ssd-export checkpoint=best.ckpt int8=true calibration=photos      convolutions in 8-bit whole numbers",
        "ssd-export checkpoint=best.ckpt data=voc_folder data.root=<folder> also the AP of checkpoint and file",
        "ssd-export checkpoint=best.ckpt format=torch_export               a program of torch.export",
    ],
    ("checkpoint",),
)
BENCHMARK = Command(
    "ssd-benchmark",
    "benchmark",
    "measure the speed of detectors by stage, from picture files to boxes",
    [
        "ssd-benchmark runs/banana_tiny/<time>                             a checkpoint",
        "ssd-benchmark best.ckpt detector.onnx                             two detectors and the ratio of their speeds",
        "ssd-benchmark best.ckpt runtimes=[eager,compile,onnxruntime]      ways to run one detector",
        "ssd-benchmark model_name=[ssd300_vgg16,ssd300_torchvision]        untrained detectors of conf/model",
        "ssd-benchmark best.ckpt precisions=[32-true,bf16-mixed] batch_sizes=[1,8] threads=[1,2]",
        "ssd-benchmark best.ckpt source=photos repeats=100                 your own pictures",
    ],
    ("checkpoint",),
    several_words=True,
)
CHECK = Command(
    "ssd-check",
    "check",
    "check the data and the default boxes of a training before it starts",
    [
        "ssd-check data=voc_folder data.root=<folder>                       your own pictures",
        "ssd-check data=voc_folder data.root=<folder> data.fix=skip         the objects that would be left out",
        "ssd-check data=voc_folder data.root=<folder> model=ssd512_vgg16    coverage by its default boxes",
        "ssd-check experiment=ssd300_vgg16_voc0712                          any other arguments of ssd-train",
    ],
)
BOXES = Command(
    "ssd-boxes",
    "boxes",
    "measure how well default boxes reach the objects of a data set, and search for better ones",
    [
        "ssd-boxes data=voc_folder data.root=<folder> model=ssd300_vgg16       coverage by its default boxes",
        "ssd-boxes experiment=ssd300_vgg16_voc0712 box_scales=small_objects    coverage by other boxes",
        "ssd-boxes experiment=ssd300_vgg16_voc0712 augmented=true              coverage after augmentation",
        "ssd-boxes data=voc_folder data.root=<folder> least_reached=0.95       exit with 1 below this share",
        "ssd-boxes design data=voc_folder data.root=<folder>                   search for better default boxes",
        "ssd-boxes design data=voc_folder data.root=<folder> boxes_budget=6000",
    ],
    words={"design": "design=true"},
)
COMPARE = Command(
    "ssd-compare",
    "compare",
    "compare runs in one HTML file: scores, curves, settings, errors and pictures",
    [
        "ssd-compare runs=runs/banana_tiny/sweep_<time>                        all jobs of a sweep",
        "ssd-compare runs=[runs/banana_tiny/<time>,runs/banana_d2l/<time>]     some runs",
        "ssd-compare runs=runs score=map                                       all runs, ranked by COCO AP",
        "ssd-compare runs=<folder> baseline=<run folder>                       differences from this run",
    ],
    ("runs",),
    several_words=True,
)

COMMANDS = {command.name: command for command in (TRAIN, EVALUATE, PREDICT, EXPORT, BENCHMARK, CHECK, BOXES, COMPARE)}


def train() -> None:
    """Run ``ssd-train``."""
    from ssd_lightning.cli.sweep.resume import expand_resume_sweep
    from ssd_lightning.cli.sweep.start import local_jobs

    with holding_folders(), local_jobs():
        run(TRAIN, _train, expand_resume_sweep)


def _train(config: DictConfig) -> Any:
    """Run one training, or one job of a sweep, and return the score that a sweep maximises."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        from ssd_lightning.cli.sweep.start import run_job

        return run_job(config)
    from ssd_lightning.cli.train import train

    return train(config)


def evaluate() -> None:
    """Run ``ssd-evaluate``."""
    run(EVALUATE, _evaluate)


def _evaluate(config: DictConfig) -> float:
    from ssd_lightning.cli.evaluate import evaluate

    return evaluate(config)


def predict() -> None:
    """Run ``ssd-predict``."""
    run(PREDICT, _predict)


def _predict(config: DictConfig) -> None:
    from ssd_lightning.cli.predict import predict

    predict(config)


def export() -> None:
    """Run ``ssd-export``."""
    run(EXPORT, _export)


def _export(config: DictConfig) -> None:
    from ssd_lightning.cli.export import export

    export(config)


def benchmark() -> None:
    """Run ``ssd-benchmark``."""
    run(BENCHMARK, _benchmark)


def _benchmark(config: DictConfig) -> None:
    from ssd_lightning.cli.benchmark import benchmark

    benchmark(config)


def check() -> None:
    """Run ``ssd-check``."""
    run(CHECK, _check)


def _check(config: DictConfig) -> None:
    from ssd_lightning.cli.check import check

    check(config)


def boxes() -> None:
    """Run ``ssd-boxes``."""
    run(BOXES, _boxes)


def _boxes(config: DictConfig) -> None:
    from ssd_lightning.cli.boxes import cover, design

    (design if config.design else cover)(config)


def compare() -> None:
    """Run ``ssd-compare``."""
    run(COMPARE, _compare)


def _compare(config: DictConfig) -> None:
    from ssd_lightning.cli.compare import compare

    compare(config)
