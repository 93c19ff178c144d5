"""The logger for Weights & Biases, online or in files that are uploaded later."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

from ssd_lightning.records import DetectionRecords, ObjectRecords
from ssd_lightning.run_folder import JOB_FILE, SWEEP_FILE, config_of_sweep, read_config, replace_text
from ssd_lightning.training.loggers.dashboard import Dashboard, Results
from ssd_lightning.training.loggers.shown_pictures import ShownPictures

log = logging.getLogger(__name__)

ID_FILE = "wandb_id.txt"
"""File in the run folder with the id of the run, under which a resumed run continues."""

SERVICE_LOST = (OSError, HandleAbandonedError, MailboxClosedError)
"""Exceptions of calls to wandb after its background process has died."""

MOST_ROWS = 10_000
"""Highest number of rows in a table that wandb draws."""

MOST_POINTS = 200
"""Highest number of points in the precision-recall curve of a class."""

LONGEST_NAME = 120
"""Highest number of characters in the name of a run."""


class WandbRun(WandbLogger, Dashboard):
    """Logger for Weights & Biases that cannot stop or delay a training when the network, server or process fails.

    If the server does not answer at the start, the run continues offline. If the server disappears later, wandb waits
    for it in the background. In both cases the folder ``wandb`` in the run folder has all data, and ``wandb sync``
    uploads them. If wandb's background process dies, only what is logged after that is lost.

    Args:
        folder: the run folder.
        project: name of the project on the server.
        name: name of the run; default: the overrides that vary in a sweep, else the experiment and the run folder.
        group: name of the group of runs; default: the folder of the sweep.
        tags: tags of the run.
        offline: write files only, and connect to no server.
        log_model: upload the best checkpoint.
        init_timeout: seconds to wait for the server at the start.
        finish_timeout: seconds to wait for uploads at the end.

    Raises:
        ValueError: if no API key is stored. The logger never asks for one.
    """

    def __init__(
        self,
        folder: Path | str,
        project: str,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        offline: bool = False,
        log_model: bool = False,
        init_timeout: float = 15.0,
        finish_timeout: float = 60.0,
    ) -> None:
        self.folder = Path(folder)
        sweep, job = sweep_and_job(self.folder)
        super().__init__(
            name or job, self.folder, project=project, group=group or sweep, tags=list(tags), offline=offline
        )
        self.log_model = log_model
        self.init_timeout = init_timeout
        self.finish_timeout = finish_timeout
        self._is_lost = False
        self._warned: set[str] = set()
        self._variables: list[str] = []
        # While the server does not answer, wandb's error reports would keep the process from ending.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        if not offline:
            self._refuse_without_login()

    @property
    def version(self) -> str:
        """Return an empty version, since a progress bar would show it."""
        return ""

    @rank_zero_only
    def _refuse_without_login(self) -> None:
        mode = _quietly().settings.mode
        try:
            is_known = mode != "online" or wandb.login(prompt=False, verify=False)
        except wandb.Error as error:
            raise ValueError(f"logger=wandb: {error}") from error
        if not is_known:
            raise ValueError(
                "logger=wandb: expected an API key, got none. Try `wandb login`, the variable WANDB_API_KEY, or "
                "logger=wandb_offline, which needs no key."
            )

    def begin(self, config: dict[str, Any], git_commit: str | None) -> None:
        if "WANDB_DATA_DIR" not in os.environ:
            # wandb would keep tables and checkpoints to upload in the home folder.
            os.environ["WANDB_DATA_DIR"] = str(self.folder / "wandb")
            self._variables = ["WANDB_DATA_DIR"]
        id_file = self.folder / ID_FILE
        settings = wandb.Settings(
            init_timeout=self.init_timeout,
            finish_timeout=self.finish_timeout,
            finish_timeout_raises=True,
            # wandb would take the commit of the working directory, and upload uncommitted changes.
            disable_git=True,
            git_commit=git_commit,
            disable_code=True,
            save_code=False,
        )
        self._wandb_init |= {
            "name": self._name or f"{config['name']} {self.folder.name}",
            "id": id_file.read_text().strip() if id_file.exists() else None,
            "config": {**config, "git_commit": git_commit},
            "settings": settings,
        }
        try:
            run = self._init()
        except Exception as error:  # No failure of a dashboard may stop a training.
            if self._offline:
                raise
            self._offline = True
            log.warning(
                "wandb: %s does not accept the run (%s), which continues offline; upload it with %s",
                _quietly().settings.base_url,
                _first_line(error),
                self._sync_command(),
            )
            # wandb's process has to end before another run can use the id.
            _end_service()
            run = self._init()
        else:
            log.info("wandb: %s", run.url or f"offline; upload it with {self._sync_command()}")
        self._experiment = run
        replace_text(id_file, f"{run.id}\n")
        with self._attempt():
            run.define_metric("trainer/global_step")
            run.define_metric("*", step_metric="trainer/global_step", step_sync=True)

    def _init(self) -> wandb.Run:
        _quietly()
        return wandb.init(**self._wandb_init, mode="offline" if self._offline else None)

    def _sync_command(self) -> str:
        online = "" if self._offline else "--include-online "
        return f"wandb sync {online}{self.folder / 'wandb'}"

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        """Turn all exceptions of wandb into warnings, since no failure of a dashboard may stop a training."""
        try:
            yield
        except SERVICE_LOST as error:
            if not self._is_lost:
                log.warning(
                    "wandb: its process has ended (%s), and the run continues without it; %s uploads earlier data",
                    error,
                    self._sync_command(),
                )
            self._is_lost = True
        except Exception as error:
            if (text := _first_line(error)) not in self._warned:
                log.warning("wandb: %s", text)
            self._warned.add(text)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        with self._attempt():
            super().log_metrics(metrics, step)

    def show_pictures(
        self,
        pictures: ShownPictures,
        detections: DetectionRecords,
        objects: ObjectRecords,
        classes: Sequence[str],
        step: int,
    ) -> None:
        with self._attempt():
            labels = dict(enumerate(classes, start=1))
            images = []
            for place, path in enumerate(pictures.paths):
                found = [column[detections.image_ids == place].tolist() for column in detections]
                truth = [column[objects.image_ids == place].tolist() for column in objects]
                boxes = {
                    "detections": [
                        _box(box, label, f"{labels[label]} {score:.2f}") | {"scores": {"score": score}}
                        for _, label, box, score in zip(*found, strict=True)
                    ],
                    "truth": [
                        _box(box, label, labels[label] + " (difficult)" * difficult)
                        for _, label, box, difficult in zip(*truth, strict=True)
                    ],
                }
                images.append(
                    wandb.Image(
                        pictures.image(place),
                        caption=path.name,
                        boxes={layer: {"box_data": data, "class_labels": labels} for layer, data in boxes.items()},
                        file_type="jpg",
                    )
                )
            self.log_metrics({"val/pictures": images}, step)

    def show_results(self, results: Results, step: int) -> None:
        with self._attempt():
            figures = {f"figures/{name}": wandb.Image(str(path)) for name, path in results.figures.items()}
            self.log_metrics({**results.numbers, **figures}, step)
            # Tables and artifacts come last, since wandb first asks the server about them, which may not answer.
            counts = results.confusion.stack().rename_axis(["truth", "detection"]).rename("count").reset_index()
            if len(counts) > MOST_ROWS:
                counts = counts[counts["count"] > 0]
            tables = {
                "results/by_class": wandb.Table(dataframe=results.by_class.reset_index()),
                "results/precision_recall": wandb.plot_table(
                    "wandb/area-under-curve/v0",
                    wandb.Table(dataframe=thinned(results.precision_recall)),
                    {"x": "recall", "y": "precision", "class": "class"},
                    {"title": "Precision and recall", "x-axis-title": "recall", "y-axis-title": "precision"},
                ),
                "results/confusion": wandb.plot_table(
                    "wandb/confusion_matrix/v1",
                    wandb.Table(dataframe=counts),
                    {"Actual": "truth", "Predicted": "detection", "nPredictions": "count"},
                    {"title": "Confusion matrix"},
                ),
            }
            self.experiment.log({**tables, "trainer/global_step": step})
            if not self.log_model or not results.checkpoint.exists():
                return
            artifact = wandb.Artifact(f"model-{self.experiment.id}", "model", metadata=results.numbers)
            artifact.add_file(str(results.checkpoint))
            self.experiment.log_artifact(artifact, aliases=["best"])

    def show_reason(self, reason: str) -> None:
        with self._attempt():
            self.experiment.summary["ended"] = reason

    def end(self, exit_code: int) -> None:
        if self._experiment is None:
            return
        try:
            with self._attempt():
                self._finish(exit_code)
        finally:
            # Another run in the same Python process must not find wandb's process and variables.
            _end_service()
            for name in self._variables:
                os.environ.pop(name, None)

    def _finish(self, exit_code: int) -> None:
        try:
            self.experiment.finish(exit_code=exit_code)
        except TimeoutError:
            log.warning(
                "wandb: not everything was uploaded within %g s; %s uploads the rest",
                self.finish_timeout,
                self._sync_command(),
            )


def sweep_and_job(folder: Path) -> tuple[str | None, str | None]:
    """Return names for the sweep of a run and for its job; both are None if the run is in no sweep."""
    sweep = next((parent for parent in folder.parents if (parent / SWEEP_FILE).exists()), None)
    if sweep is None or not (folder / JOB_FILE).exists():
        return None, None
    of_sweep = read_config(config_of_sweep(sweep))["hydra"]["overrides"]["task"]
    of_job = read_config(folder / ".hydra" / "overrides.yaml")
    varying = [override for override in of_job if override not in of_sweep]
    return sweep.name, " ".join([str(folder.relative_to(sweep)), *varying])[:LONGEST_NAME]


def _quietly() -> Any:
    """Start wandb without its many messages. This logger reports what matters."""
    return wandb.setup(settings=wandb.Settings(silent=True))


def _end_service() -> None:
    # teardown would end this process too if wandb's process has crashed.
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _box(edges: list[float], label: int, caption: str) -> dict[str, Any]:
    position = dict(zip(("minX", "minY", "maxX", "maxY"), edges, strict=True))
    return {"position": position, "domain": "pixel", "class_id": label, "box_caption": caption}


def thinned(curves: pd.DataFrame) -> pd.DataFrame:
    """Choose evenly spaced points of each class, as many as wandb can draw."""
    by_class = curves.groupby("class", sort=False)["recall"]
    points = max(1, min(MOST_POINTS, MOST_ROWS // max(1, by_class.ngroups)))
    every = -(-by_class.transform("size") // points)
    return curves[by_class.cumcount() % every == 0]
