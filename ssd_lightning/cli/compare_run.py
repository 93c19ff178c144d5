"""What ``ssd-compare`` does once its config is composed."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig
from rich.console import Console

from ssd_lightning.review.comparison_report import write_comparison


def compare(config: DictConfig) -> None:
    """Write ``comparison.html``, and tell the most important of it."""
    _check(config)
    folder = Path(HydraConfig.get().runtime.output_dir)
    given = config.runs if isinstance(config.runs, ListConfig) else [config.runs]
    found = write_comparison(
        [Path(str(path)).expanduser() for path in given],
        folder / "comparison.html",
        None if config.baseline is None else Path(str(config.baseline)).expanduser(),
        config.score,
        config.iou_threshold,
        config.draw_threshold,
        config.pictures,
    )
    console = Console()
    for line in (
        *found.sentences,
        f"Results: {folder} (open comparison.html in a browser)",
        "Next:    ssd-compare again when a run has finished"
        if found.best is None
        else f"Next:    ssd-predict checkpoint={found.best}/checkpoints/best.ckpt source=<a picture or a folder>",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _check(config: DictConfig) -> None:
    if not isinstance(config.runs, str | ListConfig) or len(config.runs) == 0:
        raise ValueError(f"runs: expected a folder or a list of folders, got {config.runs}")
    for key, interval in {"iou_threshold": "(0, 1]", "draw_threshold": "[0, 1]"}.items():
        value = config[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and 0 <= value <= 1 and (value > 0 or interval[0] == "[")):
            raise ValueError(f"{key}: expected a number in {interval}, got {value}")
    if not isinstance(config.pictures, int) or isinstance(config.pictures, bool) or config.pictures < 0:
        raise ValueError(f"pictures: expected a whole number from 0 on, got {config.pictures}")
