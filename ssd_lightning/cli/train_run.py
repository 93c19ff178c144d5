"""What ``ssd-train`` does once its config is composed; apart from it because torch takes seconds to import."""

import contextlib
import json
import logging
import platform
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LambdaCallback, LearningRateMonitor, ModelCheckpoint, Timer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.table import Table
from torch import nn

from ssd_lightning import review
from ssd_lightning.allocator import keep_freed_memory
from ssd_lightning.arguments import require_number, require_whole_number
from ssd_lightning.checkpoint import AtomicCheckpointIO, read_checkpoint
from ssd_lightning.cli import ranks
from ssd_lightning.cli.command import chosen_options, run_in_folder
from ssd_lightning.cli.devices import fastest_precision
from ssd_lightning.cli.other_ranks import SameOnAllRanks, together
from ssd_lightning.cli.paths import PLACES_OF_DATA
from ssd_lightning.dashboards import Dashboard, ShowOnDashboards, dashboards_of, read_results, running
from ssd_lightning.data.annotation_cache import cache_folder
from ssd_lightning.data.datamodule import DetectionDataModule
from ssd_lightning.data.download import only_one_process_in
from ssd_lightning.data.overfit import OverfitData
from ssd_lightning.module import SSDModule
from ssd_lightning.pretrained import load_pretrained
from ssd_lightning.run_folder import OF_THE_SWEEP, SCORE_NAMES, replace_text
from ssd_lightning.visualize import (
    draw_curves,
    draw_detections,
    draw_training_pictures,
    draw_training_statistics,
    save_figure,
)

PACKAGES = ("ssd-lightning", "torch", "torchvision", "lightning", "hydra-core", "torchmetrics")


def train(config: DictConfig) -> float:
    """Train, validate the best checkpoint, and fill the run folder. Returns the best AP at IoU 0.5."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    _check(config)
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


def _check(config: DictConfig) -> None:
    """What would be found wrong late, or never."""
    if isinstance(config.seed, str) and config.seed.isdecimal():
        config.seed = int(config.seed)  # from the environment all is text
    for key, least in WHOLE_NUMBERS.items():
        value = OmegaConf.select(config, key)
        if value is not None or key in ("seed", "batch_size", "dashboard_pictures"):
            require_whole_number(key, value, least)
    if "lr" in config.optimizer:
        require_number("optimizer.lr", config.optimizer.lr, "[0, inf)")
    if config.trainer.get("limit_val_batches") == 0:
        raise ValueError("trainer.limit_val_batches: expected at least a batch, on which the best are chosen, got 0")
    if config.trainer.get("max_epochs") == 0:
        raise ValueError("trainer.max_epochs: expected at least 1, got 0")
    if config.trainer.get("overfit_batches"):
        raise ValueError("trainer.overfit_batches: expected overfit_pictures, which counts pictures, in its place")


WHOLE_NUMBERS = {
    "seed": 0,
    "batch_size": 1,
    "num_workers": 0,
    "overfit_pictures": 1,
    "lr_reference_batch": 1,
    "dashboard_pictures": 0,
    # Lightning takes anything for its own.
    "trainer.max_epochs": -1,
    "trainer.max_steps": -1,
    "trainer.log_every_n_steps": 0,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.accumulate_grad_batches": 1,
}
"""The least of each; -1 is no limit."""


def build_datamodule(config: DictConfig) -> DetectionDataModule:
    """Loaders; the data is there and has been read when this returns, and classes that were found are in the config."""
    data = instantiate(config.data, _convert_="all")
    datamodule = DetectionDataModule(
        data if config.overfit_pictures is None else OverfitData(data, config.overfit_pictures),
        image_size=plain_values(config.model.image_size),
        batch_size=config.batch_size,
        augmentation=instantiate(config.augmentation, _convert_="all"),
        num_workers=config.num_workers,
        seed=config.seed,
    )
    # Of ranks that start at the same time the first that comes prepares the data, and the others find it there.
    is_alone = not ranks.is_one_of_several_started_alike()
    with contextlib.nullcontext() if is_alone else only_one_process_in(cache_folder()):
        datamodule.prepare_data()
        datamodule.setup("fit")
    if "classes" in config.data and config.data.classes is None:
        config.data.classes = list(datamodule.classes)
    refuse_what_tells_nothing(datamodule)
    assert datamodule.train_pictures is not None
    assert datamodule.val_pictures is not None
    shared = set(datamodule.train_pictures.paths) & set(datamodule.val_pictures.paths)
    if shared and config.overfit_pictures is None:
        more = f" ({len(shared) - 1} more: ssd-check lists them)" if len(shared) > 1 else ""
        raise ValueError(f"data: expected pictures that are only scored on, got {min(shared)} for training, too{more}")
    return datamodule


def refuse_what_tells_nothing(datamodule: DetectionDataModule) -> None:
    """Raises: ValueError: if there is no object to train on, or none to score on."""
    for pictures, purpose in ((datamodule.train_pictures, "training"), (datamodule.val_pictures, "scoring")):
        assert pictures is not None
        if not any(len(pictures.truth(row).labels) for row in range(len(pictures))):
            raise ValueError(f"data: expected at least one object in the pictures for {purpose}, got none")


def build_module(config: DictConfig, datamodule: DetectionDataModule) -> SSDModule:
    """The module, with the number of classes of the data; what is needed to rebuild the model goes along."""
    with open_dict(config):
        config.model.num_classes = len(datamodule.classes)
    plain = plain_values(config)
    model = without_weights(plain["model"])
    module = SSDModule(
        model=instantiate(model if config.resume else config.model, _convert_="all"),
        matcher=instantiate(config.matcher, _convert_="all"),
        loss=instantiate(config.loss, _convert_="all"),
        postprocess=instantiate(config.postprocess, _convert_="all"),
        optimizer=instantiate(config.optimizer, _convert_="all"),
        lr_scheduler=instantiate(config.lr_scheduler, _convert_="all"),
        parameter_groups=instantiate(config.parameter_groups, _convert_="all"),
        lr_reference_batch=config.lr_reference_batch,
        config={
            "model": model,
            "postprocess": plain["postprocess"],
            "classes": list(datamodule.classes),
            "config": plain,
        },
    )
    # Once for nothing, so that settings that do not fit are told before anything is written.
    with _told_of("optimizer"):
        optimizer = module.new_optimizer()
    with _told_of("lr_scheduler"):
        module.make_scheduler(optimizer, 100)
    if config.compile:
        # In place: names of weights, and so checkpoints, stay as they are.
        module.model.compile()
    return module


@contextlib.contextmanager
def _told_of(group: str) -> Iterator[None]:
    """Arguments of a group that is called only now: Hydra checks those of the others when it makes them."""
    try:
        yield
    except TypeError as error:
        raise ValueError(f"{group}: {error}") from error


def without_weights(model: dict[str, Any]) -> dict[str, Any]:
    """A model's config, without the file that its weights once came from: a checkpoint has them itself."""
    return {**model, "backbone": {key: value for key, value in model["backbone"].items() if key != "weights"}}


def build_loggers(config: DictConfig) -> list[Logger]:
    """Before anything that takes long: one of them may want a login."""
    return [instantiate(logger, _convert_="all") for logger in (config.logger or {}).values() if logger]


def build_trainer(
    config: DictConfig, always: list[lightning.Callback], loggers: list[Logger], model: nn.Module
) -> lightning.Trainer:
    callbacks = [instantiate(callback, _convert_="all") for callback in (config.callbacks or {}).values() if callback]
    if not loggers:  # it refuses to be without
        callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    return instantiate(
        config.trainer,
        precision=config.trainer.precision or fastest_precision(config.trainer.get("accelerator", "auto"), model),
        callbacks=[*always, *callbacks],
        logger=loggers,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=HydraConfig.get().runtime.output_dir,
        _convert_="all",
    )


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
    review.save_detections(folder / "detections.npz", detections, objects, paths, datamodule.classes)
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
        review.draw_worst_pictures(datamodule.val_pictures, detections, objects, datamodule.classes),
        figures / "worst_pictures.png",
    )
    save_figure(draw_training_pictures(datamodule), figures / "training_pictures.png")
    review.write_report(folder, detections, objects, datamodule.classes)
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


def plain_values(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


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
