"""A run on Weights & Biases, or in files that are uploaded there later."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import wandb
import yaml
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

from ssd_lightning.run_folder import JOB_FILE
from ssd_lightning.structures import DetectionRecords, ObjectRecords
from ssd_lightning.training.loggers.dashboard import Dashboard, Results
from ssd_lightning.training.loggers.shown_pictures import ShownPictures

log = logging.getLogger(__name__)

ID_FILE = "wandb_id.txt"
"""In the run folder, the id by which a run that is resumed goes on there."""

SERVICE_LOST = (OSError, HandleAbandonedError, MailboxClosedError)
"""What calls raise when wandb's own process, which does the work, has died."""

MOST_ROWS = 10_000
"""Of a table that wandb draws."""

MOST_POINTS = 200
"""Of the precision-recall curve of a class."""

LONGEST_NAME = 120


class WandbRun(WandbLogger, Dashboard):
    """Lightning's logger, made so that no network, server or process of wandb can stop a training or hold it up.

    A server that does not answer at the start is done without: the run goes on offline. If it goes away later, wandb
    itself waits for it in the background. Either way all is kept in ``wandb`` of the run folder, and ``wandb sync``
    uploads it. If the process of wandb dies, what is logged from then on is lost, and nothing else.

    Args:
        folder: the run folder.
        project: on the server.
        name: of the run; default: for a job of a sweep what varies, else its experiment and its folder.
        group: of runs; default: the folder of the sweep.
        tags: to find it by.
        offline: write files and connect to nobody.
        log_model: upload the best checkpoint.
        init_timeout: seconds that the server has at the start.
        finish_timeout: seconds that the end waits for what is not uploaded yet.

    Raises:
        ValueError: if nobody is logged in. It never asks.
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
        self._told: set[str] = set()
        self._variables: list[str] = []
        # Its reports about itself keep the process from ending while the server does not answer.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        if not offline:
            self._refuse_without_login()

    @property
    def version(self) -> str:
        """None for the progress bar to show."""
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
                "logger=wandb: expected an API key, got none; `wandb login` stores one, WANDB_API_KEY gives one, "
                "logger=wandb_offline needs none"
            )

    def begin(self, config: dict[str, Any], git_commit: str | None) -> None:
        if "WANDB_DATA_DIR" not in os.environ:
            # Where files of tables and checkpoints wait to be uploaded; it would be in the home folder.
            os.environ["WANDB_DATA_DIR"] = str(self.folder / "wandb")
            self._variables = ["WANDB_DATA_DIR"]
        id_file = self.folder / ID_FILE
        settings = wandb.Settings(
            init_timeout=self.init_timeout,
            finish_timeout=self.finish_timeout,
            finish_timeout_raises=True,
            # The commit is that of this code, not of where the command is given; its changes are not uploaded.
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
        except Exception as error:  # whatever it is, a dashboard does not stop a training
            if self._offline:
                raise
            self._offline = True
            log.warning(
                "wandb: %s does not take the run (%s), which goes on offline; upload it with %s",
                _quietly().settings.base_url,
                _first_line(error),
                self._sync_command(),
            )
            # The id is free again only when its process has ended.
            _end_service()
            run = self._init()
        else:
            log.info("wandb: %s", run.url or f"offline; upload it with {self._sync_command()}")
        self._experiment = run
        id_file.write_text(f"{run.id}\n")
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
        """Of all that may happen within this, nothing is a reason to stop a training."""
        try:
            yield
        except SERVICE_LOST as error:
            if not self._is_lost:
                log.warning(
                    "wandb: its process has gone (%s), and the run goes on without; %s uploads what it had",
                    error,
                    self._sync_command(),
                )
            self._is_lost = True
        except Exception as error:
            if (text := _first_line(error)) not in self._told:
                log.warning("wandb: %s", text)
            self._told.add(text)

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
            # After that, since wandb asks the server about tables and artifacts first, which may not answer any more.
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

    def end(self, exit_code: int) -> None:
        if self._experiment is None:
            return
        try:
            with self._attempt():
                self._finish(exit_code)
        finally:
            # At the end of the process this would be late: another run of the same process would find it.
            _end_service()
            for name in self._variables:
                os.environ.pop(name, None)

    def _finish(self, exit_code: int) -> None:
        try:
            self.experiment.finish(exit_code=exit_code)
        except TimeoutError:
            log.warning(
                "wandb: %g s were not enough to upload all; %s uploads the rest",
                self.finish_timeout,
                self._sync_command(),
            )


def sweep_and_job(folder: Path) -> tuple[str | None, str | None]:
    """Names for the sweep that a run is a job of, and for the job, from its folder and what varies; None for others."""
    sweep = next((parent for parent in folder.parents if (parent / "multirun.yaml").exists()), None)
    if sweep is None or not (folder / JOB_FILE).exists():
        return None, None
    of_sweep = yaml.safe_load((sweep / "multirun.yaml").read_text())["hydra"]["overrides"]["task"]
    of_job = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
    varying = [override for override in of_job if override not in of_sweep]
    return sweep.name, " ".join([str(folder.relative_to(sweep)), *varying])[:LONGEST_NAME]


def _quietly() -> Any:
    """wandb's own messages are many; those that matter are told here."""
    return wandb.setup(settings=wandb.Settings(silent=True))


def _end_service() -> None:
    # If it has crashed, it would end this process, too.
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _box(edges: list[float], label: int, caption: str) -> dict[str, Any]:
    position = dict(zip(("minX", "minY", "maxX", "maxY"), edges, strict=True))
    return {"position": position, "domain": "pixel", "class_id": label, "box_caption": caption}


def thinned(curves: pd.DataFrame) -> pd.DataFrame:
    """Evenly chosen points of each class, as many as can be drawn."""
    by_class = curves.groupby("class", sort=False)["recall"]
    points = max(1, min(MOST_POINTS, MOST_ROWS // max(1, by_class.ngroups)))
    every = -(-by_class.transform("size") // points)
    return curves[by_class.cumcount() % every == 0]
