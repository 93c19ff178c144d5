"""Compare pruners: the epochs that a search trains and the best score that it finds, with each of them and without.

    uv run python benchmarks/pruning.py --trials 12 --epochs 6 --studies 3

Each pruner runs the same studies. The trials of one study are the same for all pruners, until a pruner changes what the
sampler has seen. Epochs do not depend on what else the machine does, unlike minutes.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from ssd_lightning.run_folder import read_metrics

PRUNERS = ("none", "median", "successive_halving", "hyperband", "patience")

SEARCH = ("hparams_search=banana_optuna", "dashboard_pictures=0")


class Found(NamedTuple):
    """The result of a search, and its cost."""

    epochs: int
    pruned: int
    best: float


def search(folder: Path, pruner: str, arguments: list[str]) -> Found:
    command = [sys.executable, "-m", "ssd_lightning.cli.train", *SEARCH, f"hydra/sweeper/pruner={pruner}"]
    subprocess.run([*command, f"hydra.sweep.dir={folder}", *arguments], check=True, stdout=subprocess.DEVNULL)
    with (folder / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    validated = [row for job in folder.glob("*/metrics.csv") for row in read_metrics(job).values()]
    return Found(
        epochs=sum("val/map_50" in row for row in validated),
        pruned=sum(row["status"] == "pruned" for row in rows),
        best=max(float(row["AP50"]) for row in rows if row["status"] == "finished"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--studies", type=int, default=3)
    parser.add_argument("--pruners", nargs="+", default=PRUNERS, choices=PRUNERS)
    parser.add_argument("arguments", nargs="*", help="more arguments of ssd-train, after --")
    args = parser.parse_args()
    length = [f"hydra.sweeper.n_trials={args.trials}", f"trainer.max_epochs={args.epochs}"]
    print("| pruner | epochs, median | pruned | best AP50, median | of each study |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for pruner in args.pruners:
            found = [
                search(
                    Path(place, pruner, str(seed)),
                    pruner,
                    [*length, *args.arguments, f"hydra.sweeper.sampler.seed={seed}"],
                )
                for seed in range(args.studies)
            ]
            epochs, best = (statistics.median(getattr(one, name) for one in found) for name in ("epochs", "best"))
            pruned = ", ".join(str(one.pruned) for one in found)
            each = ", ".join(f"{one.best:.3f}" for one in found)
            print(f"| {pruner} | {epochs} | {pruned} | {best:.3f} | {each} |", flush=True)


if __name__ == "__main__":
    main()
