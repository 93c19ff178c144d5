"""``ssd-check``: look at a training's data and default boxes before it is done."""

from omegaconf import DictConfig

from ssd_lightning.cli import command

EXAMPLES = [
    "ssd-check data=voc_folder data.root=<folder>                           your own pictures",
    "ssd-check data=voc_folder data.root=<folder> data.fix=skip             what would be left out",
    "ssd-check data=voc_folder data.root=<folder> model=ssd512_vgg16        do its default boxes reach the objects?",
    "ssd-check experiment=ssd300_vgg16_voc0712                              everything else as for ssd-train",
]


def main() -> None:
    command.run("ssd-check", "check", "read a training's data, and tell what is wrong with it", EXAMPLES, task)


def task(config: DictConfig) -> None:
    from ssd_lightning.cli.check_run import check

    check(config)


if __name__ == "__main__":
    main()
