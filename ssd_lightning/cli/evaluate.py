"""``ssd-evaluate``: score a checkpoint."""

from omegaconf import DictConfig

from ssd_lightning.cli import command

EXAMPLES = [
    "ssd-evaluate checkpoint=runs/banana_tiny/<time>/checkpoints/best.ckpt",
    "ssd-evaluate checkpoint=best.ckpt data=banana",
    "ssd-evaluate checkpoint=best.ckpt +postprocess.nms_threshold=0.6",
]


def main() -> None:
    command.run("ssd-evaluate", "evaluate", "VOC07, VOC12 and COCO scores of a checkpoint", EXAMPLES, task)


def task(config: DictConfig) -> float:
    from ssd_lightning.cli.evaluate_run import evaluate

    return evaluate(config)


if __name__ == "__main__":
    main()
