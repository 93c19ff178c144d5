"""``ssd-compare``: many runs in one HTML file, and two of them picture by picture."""

from omegaconf import DictConfig

from ssd_lightning.cli import command

EXAMPLES = [
    "ssd-compare runs=runs/banana_tiny/sweep_<time>                        all jobs of a sweep",
    "ssd-compare runs=[runs/banana_tiny/<time>,runs/banana_d2l/<time>]     some runs",
    "ssd-compare runs=runs score=map                                       all runs, ranked by COCO's AP",
    "ssd-compare runs=<folder> baseline=<run folder>                       what is better than this one?",
]


def main() -> None:
    about = "runs side by side in an HTML file: scores, curves, settings, errors and pictures"
    command.run("ssd-compare", "compare", about, EXAMPLES, task)


def task(config: DictConfig) -> None:
    from ssd_lightning.cli.compare_run import compare

    compare(config)


if __name__ == "__main__":
    main()
