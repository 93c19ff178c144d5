"""``ssd-evaluate``: score a checkpoint, or stored detections once more."""

from omegaconf import DictConfig

from ssd_lightning.cli import command

EXAMPLES = [
    "ssd-evaluate checkpoint=runs/banana_tiny/<time>/checkpoints/best.ckpt",
    "ssd-evaluate checkpoint=best.ckpt data=banana",
    "ssd-evaluate checkpoint=best.ckpt +postprocess.nms_threshold=0.6",
    "ssd-evaluate detections=runs/banana_tiny/<time>  what the run found, scored again without a model",
    "ssd-evaluate detections=<run folder> iou_threshold=0.3 score_threshold=0.05",
    "ssd-evaluate -m detections=<run folder> iou_threshold=0.3,0.5,0.75",
]


def main() -> None:
    command.run("ssd-evaluate", "evaluate", "VOC07, VOC12 and COCO scores, and confusions", EXAMPLES, task)


def task(config: DictConfig) -> float:
    from ssd_lightning.cli.evaluate_run import evaluate

    return evaluate(config)


if __name__ == "__main__":
    main()
