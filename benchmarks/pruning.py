"""Compare pruners: the time and the best score of one search, with each of them and without.

    uv run python benchmarks/pruning.py --trials 20 --epochs 8

All searches draw with the same seed. Their first trials are the same, until a pruner changes what the sampler has seen.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PRUNERS = ("none", "median", "successive_halving", "hyperband", "patience")

SEARCH = ("hparams_search=banana_optuna", "dashboard_pictures=0")


def search(folder: Path, pruner: str, arguments: list[str]) -> tuple[float, list[dict[str, str]]]:
    """Run a search, and return its seconds and the rows of its table."""
    command = [sys.executable, "-m", "ssd_lightning.cli.train", *SEARCH, f"hydra/sweeper/pruner={pruner}"]
    began = time.perf_counter()
    subprocess.run([*command, f"hydra.sweep.dir={folder}", *arguments], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    with (folder / "sweep.csv").open(newline="") as file:
        return seconds, list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--pruners", nargs="+", default=PRUNERS, choices=PRUNERS)
    parser.add_argument("arguments", nargs="*", help="more arguments of ssd-train, after --")
    args = parser.parse_args()
    length = [f"hydra.sweeper.n_trials={args.trials}", f"trainer.max_epochs={args.epochs}"]
    print("| pruner | minutes | pruned | best AP50 |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for pruner in args.pruners:
            seconds, rows = search(Path(place, pruner), pruner, [*length, *args.arguments])
            best = max(float(row["AP50"]) for row in rows if row["status"] == "finished")
            pruned = sum(row["status"] == "pruned" for row in rows)
            print(f"| {pruner} | {seconds / 60:.1f} | {pruned} of {len(rows)} | {best:.3f} |", flush=True)


if __name__ == "__main__":
    main()
