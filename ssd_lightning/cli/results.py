"""The end of a training: scores of the best checkpoint, the test, and the files of the run folder."""

import json
import platform
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import Precision
from omegaconf import DictConfig
from rich.table import Table

from ssd_lightning.cli.run_folders import chosen_options
from ssd_lightning.cli.screen import screen
from ssd_lightning.data.datamodule import DetectionDataModule
from ssd_lightning.data.overfit import FirstPictures
from ssd_lightning.drawing import draw_detections, save_figure
from ssd_lightning.require import counted
from ssd_lightning.run_folder import SCORE_NAMES, TEST_SCORES, replace_text
from ssd_lightning.scoring.csv_tables import write_table
from ssd_lightning.scoring.error_figures import draw_worst_pictures
from ssd_lightning.scoring.run_report import write_report
from ssd_lightning.scoring.scores import score_by_class
from ssd_lightning.scoring.stored_detections import save_detections
from ssd_lightning.training.checkpoint import read_checkpoint, refuse_other_weights, weights_in
from ssd_lightning.training.figures import draw_curves, draw_training_pictures, draw_training_statistics
from ssd_lightning.training.loggers.dashboard import Dashboard, read_results
from ssd_lightning.training.module import SSDModule

PACKAGES = ("ssd-lightning", "torch", "torchvision", "lightning", "hydra-core", "torchmetrics")
"""Packages whose versions are stored in ``summary.json``."""


def score_and_write_results(
    config: DictConfig,
    folder: Path,
    trainer: lightning.Trainer,
    module: SSDModule,
    datamodule: DetectionDataModule,
    seconds: float,
    dashboards: list[Dashboard],
) -> float:
    """Score the best weights on all ranks; write summary, detections and figures on the first rank.

    Pictures for a test are scored once, with the weights that the validation has chosen, and in files of their own.

    Args:
        config: the config of the run.
        folder: the run folder.
        trainer: the trainer, after the training.
        module: the module, whose weights become those of the best checkpoint.
        datamodule: the data to score on.
        seconds: duration of the training.
        dashboards: where the results are shown.

    Returns:
        AP at IoU 0.5 of the validation.
    """
    steps, epochs = trainer.global_step, trainer.current_epoch
    # The other ranks receive the weights from the first when the validation begins.
    best = _best_checkpoint(trainer) if trainer.is_global_zero else None
    if best is not None:
        content = read_checkpoint(best)
        weights = weights_in(content, best)
        refuse_other_weights(weights, module.state_dict(), best)
        module.load_state_dict(weights)
        best_epoch, best_step = content.get("epoch", 0), content.get("global_step", 0)
    else:
        best_epoch, best_step = max(epochs - 1, 0), steps
    trainer.loggers = []  # The metrics file holds the scores of the training alone.
    precision = trainer.precision
    # In float32 and not compiled, as in ssd-evaluate, so that a checkpoint has one score.
    trainer.strategy.precision_plugin = Precision()
    module.model._compiled_call_impl = None
    [scores] = trainer.validate(module, datamodule, verbose=False)
    at = {"best_epoch": best_epoch, "best_step": best_step, "epochs": epochs, "steps": steps}
    if trainer.is_global_zero:
        _write_results(config, folder, trainer, module, datamodule, scores, at, seconds, precision)
    if datamodule.test_pictures is not None:
        _test(config.name, folder, trainer, module, datamodule, at)
    if not trainer.is_global_zero:
        return float(scores["val/map_50"])
    console = screen()
    chosen = "last" if best is None else "best"
    for line in (
        f"Results: {folder} (look at figures/validation_detections.png)",
        f"Next:    ssd-predict {shlex.quote(f'checkpoint={folder}/checkpoints/{chosen}.ckpt')} "
        "source=<a picture or a folder>",
    ):
        console.print(line, soft_wrap=True)
    for dashboard in dashboards:
        dashboard.show_results(read_results(folder), steps)
    return float(scores["val/map_50"])


def _write_results(
    config: DictConfig,
    folder: Path,
    trainer: lightning.Trainer,
    module: SSDModule,
    datamodule: DetectionDataModule,
    scores: Mapping[str, float],
    at: dict[str, int],
    seconds: float,
    precision: str | int,
) -> None:
    """Write the summary, the detections and the figures of a validation, and print its scores."""
    detections, objects = module.scores.detections(), module.scores.objects()
    assert datamodule.val_pictures is not None
    assert datamodule.train_pictures is not None
    # With limit_val_batches, as in debug runs, only the first pictures are scored.
    pictures = FirstPictures(datamodule.val_pictures, module.scores.pictures)
    save_detections(folder / "detections.npz", detections, objects, pictures.paths, datamodule.classes)
    pictures_of_step = config.batch_size * trainer.world_size * trainer.accumulate_grad_batches
    images_per_second = at["steps"] * pictures_of_step / max(seconds, 1e-9)
    summary = {
        "name": config.name,
        "scores": scores,
        **at,
        "train_seconds": round(seconds, 1),
        "images_per_second": round(images_per_second, 2),
        "world_size": trainer.world_size,
        "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
        "default_boxes": len(module.model.default_boxes),
        "choices": chosen_options(folder),
        "classes": list(datamodule.classes),
        "train_pictures": len(datamodule.train_pictures),
        "val_pictures": len(pictures),
        "seed": config.seed,
        "device": device_name(trainer),
        "precision": precision,
        "versions": {package: version(package) for package in PACKAGES} | {"python": platform.python_version()},
        "git_commit": git_commit(),
    }
    replace_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    figures = folder / "figures"
    if (folder / "metrics.csv").exists():
        save_figure(draw_curves(folder / "metrics.csv"), figures / "curves.png")
    if statistics := draw_training_statistics(folder / "metrics.csv"):
        save_figure(statistics, figures / "training_statistics.png")
    save_figure(
        draw_detections(pictures, detections, objects, datamodule.classes),
        figures / "validation_detections.png",
    )
    save_figure(
        draw_worst_pictures(pictures, detections, objects, datamodule.classes),
        figures / "worst_pictures.png",
    )
    save_figure(draw_training_pictures(datamodule), figures / "training_pictures.png")
    write_report(folder, detections, objects, datamodule.classes)
    cost = {"minutes": f"{seconds / 60:.1f}", "images/s": f"{images_per_second:.1f}"}
    screen().print(_table(f"{config.name}: best epoch {at['best_epoch'] + 1} of {at['epochs']}", "val", scores, cost))


def _test(
    name: str,
    folder: Path,
    trainer: lightning.Trainer,
    module: SSDModule,
    datamodule: DetectionDataModule,
    at: dict[str, int],
) -> None:
    """Score the test pictures on all ranks; write and print their scores on the first rank."""
    [scores] = trainer.test(module, datamodule, verbose=False)
    if not trainer.is_global_zero:
        return
    assert datamodule.test_pictures is not None
    detections, objects = module.scores.detections(), module.scores.objects()
    paths = FirstPictures(datamodule.test_pictures, module.scores.pictures).paths
    save_detections(folder / "test_detections.npz", detections, objects, paths, datamodule.classes)
    write_table(score_by_class(detections, objects, datamodule.classes), folder / "test_scores.csv")
    tested = {"scores": scores, "pictures": len(paths), "epoch": at["best_epoch"], "step": at["best_step"]}
    replace_text(folder / TEST_SCORES, json.dumps(tested, indent=2) + "\n")
    title = f"{name}: test on {counted(len(paths), 'picture')}"
    screen().print(_table(title, "test", scores, {}))


def _best_checkpoint(trainer: lightning.Trainer) -> str | None:
    """Return the best checkpoint by score, or None if no checkpoint is chosen by a score."""
    callbacks = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor is not None]
    paths = [callback.best_model_path for callback in callbacks]
    return next((path for path in paths if path and Path(path).exists()), None)


def _table(title: str, split: str, scores: Mapping[str, float], more: dict[str, str]) -> Table:
    """Return a table of the scores of a split, and of more columns."""
    known = {SCORE_NAMES[key]: f"{scores[f'{split}/{key}']:.3f}" for key in SCORE_NAMES if f"{split}/{key}" in scores}
    table = Table(title=title)
    for name in (*known, *more):
        table.add_column(name, justify="right")
    table.add_row(*known.values(), *more.values())
    return table


def device_name(trainer: lightning.Trainer) -> str:
    """Return the name of the device of this rank, such as ``cpu`` or the name of a GPU."""
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def git_commit() -> str | None:
    """Return the commit of the checkout that the package runs from, or None if the package is installed."""
    if shutil.which("git") is None:
        return None
    git = ["git", "-C", str(Path(__file__).parent)]
    # An installed package may lie inside the checkout of another project.
    is_own = subprocess.run(
        [*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=False
    )
    if is_own.returncode != 0:
        return None
    found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
