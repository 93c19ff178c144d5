"""``ssd-train``: train, score and draw a detector."""

from omegaconf import DictConfig

from ssd_lightning.cli import command

EXAMPLES = [
    "ssd-train                                        TinySSD on drawn bananas; no download",
    "ssd-train trainer.max_epochs=12 optimizer.lr=2e-3",
    "ssd-train model=ssdlite320_mobilenet_v2 optimizer=adamw",
    "ssd-train data=voc_folder data.root=<folder>     your own pictures",
    "ssd-train loss=focal matcher=ignore_band",
    "ssd-train -m loss=multibox,focal seed=0,1,2      six runs",
    "ssd-train experiment=banana_d2l                  the recipe of d2l.ai",
    "ssd-train resume=runs/banana_tiny/<time>         continue an interrupted run",
]


def main() -> None:
    command.run("ssd-train", "train", "train, score and draw a Single Shot MultiBox Detector", EXAMPLES, task)


def task(config: DictConfig) -> float:
    """One run. Returns the score that sweeps maximise."""
    from ssd_lightning.cli.train_run import train

    return train(config)


if __name__ == "__main__":
    main()
