"""``ssd-train``: train, score and draw a detector."""

from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ssd_lightning.cli import command, sweep

EXAMPLES = [
    "ssd-train                                        TinySSD on drawn bananas; no download",
    "ssd-train trainer.max_epochs=12 optimizer.lr=2e-3",
    "ssd-train model=ssdlite320_mobilenet_v2 optimizer=adamw",
    "ssd-train data=voc_folder data.root=<folder>     your own pictures",
    "ssd-train loss=focal matcher=ignore_band",
    "ssd-train -m loss=multibox,focal seed=0,1,2      six runs",
    "ssd-train experiment=banana_d2l                  the recipe of d2l.ai",
    "ssd-train resume=runs/banana_tiny/<time>         continue an interrupted run",
    "ssd-train resume_sweep=runs/banana_tiny/sweep_<time>",
]


def main() -> None:
    about = "train, score and draw a Single Shot MultiBox Detector"
    with sweep.local_jobs():
        command.run("ssd-train", "train", about, EXAMPLES, task, sweep.understand)


def task(config: DictConfig) -> Any:
    """One run, or one job of a sweep. Returns the score that sweeps maximise."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return sweep.run_job(config)
    from ssd_lightning.cli.train_run import train

    return train(config)


if __name__ == "__main__":
    main()
