"""``ssd-predict``: detect objects in pictures."""

from omegaconf import DictConfig

from ssd_lightning.cli import command

EXAMPLES = [
    "ssd-predict checkpoint=runs/banana_tiny/<time>/checkpoints/best.ckpt source=photo.jpg",
    "ssd-predict checkpoint=best.ckpt source=photos draw_threshold=0.3",
    "ssd-predict checkpoint=best.ckpt 'source=photos/*.png' draw=false",
]


def main() -> None:
    command.run("ssd-predict", "predict", "pictures or folders to JSON and drawings", EXAMPLES, task)


def task(config: DictConfig) -> None:
    from ssd_lightning.cli.predict_run import predict

    predict(config)


if __name__ == "__main__":
    main()
