"""``ssd-boxes``: whether default boxes reach the objects of a data set, and better ones for it."""

from omegaconf import DictConfig

from ssd_lightning.cli import command

EXAMPLES = [
    "ssd-boxes data=voc_folder data.root=<folder> model=ssd300_vgg16       do its default boxes reach the objects?",
    "ssd-boxes experiment=ssd300_vgg16_voc0712 box_scales=small_objects    would these?",
    "ssd-boxes experiment=ssd300_vgg16_voc0712 augmented=true              of the pictures as they are trained on",
    "ssd-boxes data=voc_folder data.root=<folder> least_reached=0.95       exits with 1 if they are fewer",
    "ssd-boxes design data=voc_folder data.root=<folder>                   search for better ones, no more than now",
    "ssd-boxes design data=voc_folder data.root=<folder> boxes_budget=6000",
]


def main() -> None:
    about = "how well default boxes reach the objects of a data set, and a search for better ones"
    command.run("ssd-boxes", "boxes", about, EXAMPLES, task, understand)


def understand(arguments: list[str]) -> list[str]:
    """``design`` as the first word is ``design=true``."""
    return ["design=true", *arguments[1:]] if arguments[:1] == ["design"] else arguments


def task(config: DictConfig) -> None:
    from ssd_lightning.cli.boxes_run import cover, design

    (design if config.design else cover)(config)


if __name__ == "__main__":
    main()
