"""What ``ssd-train`` does once its config is composed; apart from it because torch takes seconds to import."""

import json
import logging
import platform
import shlex
import shutil
import subprocess
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint, Timer
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from ssd_lightning.cli import ranks
from ssd_lightning.cli.build import (
    build_datamodule,
    build_loggers,
    build_module,
    build_trainer,
    check_values,
    plain_values,
)
from ssd_lightning.cli.launch_ranks import SameOnAllRanks, together
from ssd_lightning.cli.overrides import PLACES_OF_DATA
from ssd_lightning.cli.run_folders import chosen_options, run_in_folder
from ssd_lightning.data.datamodule import DetectionDataModule
from ssd_lightning.devices import keep_freed_memory
from ssd_lightning.drawing import draw_detections, save_figure
from ssd_lightning.run_folder import OF_THE_SWEEP, SCORE_NAMES, replace_text
from ssd_lightning.scoring.error_figures import draw_worst_pictures
from ssd_lightning.scoring.run_report import write_report
from ssd_lightning.scoring.stored_detections import save_detections
from ssd_lightning.training.checkpoint import read_checkpoint
from ssd_lightning.training.figures import draw_curves, draw_training_pictures, draw_training_statistics
from ssd_lightning.training.loggers.dashboard import Dashboard, dashboards_of, read_results, running
from ssd_lightning.training.loggers.show import ShowOnDashboards
from ssd_lightning.training.module import SSDModule
from ssd_lightning.training.pretrained import load_pretrained

PACKAGES = ("ssd-lightning", "torch", "torchvision", "lightning", "hydra-core", "torchmetrics")


def train(config: DictConfig) -> float:
    """Train, validate the best checkpoint, and fill the run folder. Returns the best AP at IoU 0.5."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    check_values(config)
    keep_freed_memory()
    # Lightning tells at length which devices it did not find, and each rank that it is there.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not ranks.is_first():
        warnings.simplefilter("ignore")  # the first has the same
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    loggers = build_loggers(config)
    datamodule = build_datamodule(config)
    module = build_module(config, datamodule)
    if config.pretrained and not config.resume:
        report = load_pretrained(module.model, config.pretrained, datamodule.classes)
        if ranks.is_first():
            Console().print(str(report), highlight=False, markup=False)
    timer = Timer()
    own = [
        timer,
        SameOnAllRanks(_what_ranks_share(config, datamodule)),
        LambdaCallback(on_train_start=lambda trainer, module: _keep_config(config, folder)),
        ShowOnDashboards(config.dashboard_pictures),
    ]
    trainer = build_trainer(config, own, loggers, module.model)
    dashboards = dashboards_of(trainer)
    last = folder / "checkpoints" / "last.ckpt"
    changes = HydraConfig.get().overrides.task if config.resume else []
    # The dashboards end last: how long they take is nothing to the other ranks.
    with (
        running(dashboards, _what_dashboards_tell(config, folder), _git_commit()),
        together(trainer, [*run_in_folder(folder), *changes]),
    ):
        if trainer.is_global_zero:
            Console().print(_what_is_trained(config, trainer, module, datamodule), highlight=False, markup=False)
        trainer.fit(module, datamodule, ckpt_path=str(last) if config.resume else None, weights_only=True)
        return _finish(config, folder, trainer, module, datamodule, timer, dashboards)


def _finish(
    config: DictConfig,
    folder: Path,
    trainer: lightning.Trainer,
    module: SSDModule,
    datamodule: DetectionDataModule,
    timer: Timer,
    dashboards: list[Dashboard],
) -> float:
    """Score the best weights on all ranks, and write summary, detections and figures on the first."""
    console = Console()
    seconds = timer.time_elapsed("train")
    steps, epochs = trainer.global_step, trainer.current_epoch
    # The others get the weights from the first when they validate.
    best = _best_checkpoint(trainer) if trainer.is_global_zero else None
    if best is not None:
        content = read_checkpoint(best)
        module.load_state_dict(content["state_dict"])
        best_epoch, best_step = content["epoch"], content["global_step"]
    else:
        best_epoch, best_step = max(epochs - 1, 0), steps
    trainer.loggers = []  # the metrics are those of training
    [scores] = trainer.validate(module, datamodule, verbose=False)
    if not trainer.is_global_zero:
        return float(scores["val/map_50"])
    detections, objects = module.scores.detections(), module.scores.objects()
    assert datamodule.val_pictures is not None
    assert datamodule.train_pictures is not None
    paths = datamodule.val_pictures.paths
    save_detections(folder / "detections.npz", detections, objects, paths, datamodule.classes)
    pictures_of_step = config.batch_size * trainer.world_size * trainer.accumulate_grad_batches
    summary = {
        "name": config.name,
        "scores": scores,
        "best_epoch": best_epoch,
        "best_step": best_step,
        "epochs": epochs,
        "steps": steps,
        "train_seconds": round(seconds, 1),
        "images_per_second": round(steps * pictures_of_step / max(seconds, 1e-9), 2),
        "world_size": trainer.world_size,
        "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
        "default_boxes": len(module.model.default_boxes),
        "choices": chosen_options(folder),
        "classes": list(datamodule.classes),
        "train_pictures": len(datamodule.train_pictures),
        "val_pictures": len(datamodule.val_pictures),
        "seed": config.seed,
        "device": _device_name(trainer),
        "precision": trainer.precision,
        "versions": {package: version(package) for package in PACKAGES} | {"python": platform.python_version()},
        "git_commit": _git_commit(),
    }
    replace_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    figures = folder / "figures"
    if (folder / "metrics.csv").exists():
        save_figure(draw_curves(folder / "metrics.csv"), figures / "curves.png")
    if statistics := draw_training_statistics(folder / "metrics.csv"):
        save_figure(statistics, figures / "training_statistics.png")
    save_figure(
        draw_detections(datamodule.val_pictures, detections, objects, datamodule.classes),
        figures / "validation_detections.png",
    )
    save_figure(
        draw_worst_pictures(datamodule.val_pictures, detections, objects, datamodule.classes),
        figures / "worst_pictures.png",
    )
    save_figure(draw_training_pictures(datamodule), figures / "training_pictures.png")
    write_report(folder, detections, objects, datamodule.classes)
    console.print(_table(summary))
    weights = "last" if best is None else "best"
    for line in (
        f"Results: {folder} (look at figures/validation_detections.png)",
        f"Next:    ssd-predict {shlex.quote(f'checkpoint={folder}/checkpoints/{weights}.ckpt')} "
        "source=<a picture or a folder>",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for dashboard in dashboards:
        dashboard.show_results(read_results(folder), steps)
    return float(scores["val/map_50"])


def _keep_config(config: DictConfig, folder: Path) -> None:
    """The run folder's config has the classes that were found, and what was changed for the rest of a run."""
    if ranks.is_first():
        kept = OmegaConf.merge(config, {"resume": None})
        replace_text(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(kept))


def _what_ranks_share(config: DictConfig, datamodule: DetectionDataModule) -> dict[str, Any]:
    """All that decides what is trained. Data may lie elsewhere on each machine."""
    assert datamodule.train_pictures is not None
    assert datamodule.val_pictures is not None
    plain = plain_values(config)
    return {
        **{key: value for key, value in plain.items() if key not in PLACES_OF_DATA},
        "data": {key: value for key, value in plain["data"].items() if f"data.{key}" not in PLACES_OF_DATA},
        "pictures": [len(datamodule.train_pictures), len(datamodule.val_pictures)],
    }


def _what_dashboards_tell(config: DictConfig, folder: Path) -> dict[str, Any]:
    """The config, without what only says where this run writes, which differs between any two runs."""
    plain = plain_values(config)
    callbacks = OmegaConf.to_container(config.callbacks) if config.callbacks else {}
    kept = {key: value for key, value in plain.items() if key not in NOT_OF_A_RUN}
    return {**kept, "callbacks": callbacks, "choices": chosen_options(folder)}


NOT_OF_A_RUN = ("logger", "data_dir", "resume", *OF_THE_SWEEP)
"""Keys that make no difference to what is trained."""


def _what_is_trained(
    config: DictConfig, trainer: lightning.Trainer, module: SSDModule, datamodule: DetectionDataModule
) -> str:
    assert datamodule.train_pictures is not None
    assert datamodule.val_pictures is not None
    parameters = sum(parameter.numel() for parameter in module.model.parameters())
    detector = chosen_options(Path(HydraConfig.get().runtime.output_dir)).get("model", "resumed")
    devices = _device_name(trainer) if trainer.world_size == 1 else f"{trainer.world_size} × {_device_name(trainer)}"
    return (
        f"{config.name}, {detector}: {parameters / 1e6:.1f} M parameters, "
        f"{len(module.model.default_boxes)} default boxes, "
        f"{len(datamodule.train_pictures)} + {len(datamodule.val_pictures)} pictures, {len(datamodule.classes)} "
        f"classes, on {devices} ({trainer.precision})"
    )


def _best_checkpoint(trainer: lightning.Trainer) -> str | None:
    callbacks = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor is not None]
    paths = [callback.best_model_path for callback in callbacks]
    return next((path for path in paths if path and Path(path).exists()), None)


def _table(summary: dict[str, Any]) -> Table:
    table = Table(title=f"{summary['name']}: best epoch {summary['best_epoch'] + 1} of {summary['epochs']}")
    known = {key: summary["scores"][f"val/{key}"] for key in SCORE_NAMES if f"val/{key}" in summary["scores"]}
    for key in known:
        table.add_column(SCORE_NAMES[key], justify="right")
    table.add_column("minutes", justify="right")
    table.add_column("images/s", justify="right")
    table.add_row(
        *(f"{value:.3f}" for value in known.values()),
        f"{summary['train_seconds'] / 60:.1f}",
        f"{summary['images_per_second']:.1f}",
    )
    return table


def _device_name(trainer: lightning.Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _git_commit() -> str | None:
    """Of the checkout that the package runs from, if it is one."""
    if shutil.which("git") is None:
        return None
    git = ["git", "-C", str(Path(__file__).parent)]
    # An installed package may lie in somebody else's checkout.
    is_own = subprocess.run(
        [*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=False
    )
    if is_own.returncode != 0:
        return None
    found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


if __name__ == "__main__":
    from ssd_lightning.cli import commands

    commands.train()
