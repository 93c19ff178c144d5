"""The command ``ssd-compare``, after its config is composed."""

import shlex
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig

from ssd_lightning.cli.screen import screen
from ssd_lightning.require import require_number, require_whole_number
from ssd_lightning.review.comparison_report import write_comparison
from ssd_lightning.run_folder import run_of_file


def compare(config: DictConfig) -> None:
    """Write ``comparison.html``, and print its summary."""
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
    console = screen()
    for line in (
        *found.sentences,
        f"Results: {folder} (open comparison.html in a browser)",
        "Next:    ssd-compare again when a run has finished"
        if found.best is None
        else f"Next:    ssd-predict {shlex.quote(f'checkpoint={found.best}/checkpoints/best.ckpt')} "
        "source=<a picture or a folder>",
    ):
        console.print(line, soft_wrap=True)


def _check(config: DictConfig) -> None:
    if not isinstance(config.runs, str | ListConfig) or len(config.runs) == 0:
        raise ValueError(f"runs: expected a folder or a list of folders, got {config.runs}")
    runs = config.runs if isinstance(config.runs, ListConfig) else [config.runs]
    for key, path in (*(("runs", run) for run in runs), ("baseline", config.baseline)):
        file = Path(str(path)).expanduser()
        if path is not None and file.is_file():
            raise ValueError(
                f"{key}: expected a folder, got the file {path}. Try {key}={run_of_file(file.absolute())}."
            )
    require_number("iou_threshold", config.iou_threshold, "(0, 1]")
    require_number("draw_threshold", config.draw_threshold, "[0, 1]")
    require_whole_number("pictures", config.pictures, 0)
