"""When dashboards are shown what."""

import time
from typing import Any

import lightning

from ssd_lightning.require import require_whole_number
from ssd_lightning.scoring.average_precision import average_curves, precision_recall_curves
from ssd_lightning.structures import Batch
from ssd_lightning.training.loggers.dashboard import dashboards_of
from ssd_lightning.training.loggers.shown_pictures import ShownPictures, rows_to_show, worth_showing


class ShowOnDashboards(lightning.Callback):
    """Shows pictures with boxes and the AP of each class after every validation, and images/s while training.

    Numbers go to dashboards only: how fast a machine is does not belong to the metrics of a run, which another run of
    the same config gives again to the bit.

    Args:
        pictures: how many, the same every time, with objects of as many classes as possible.
    """

    def __init__(self, pictures: int) -> None:
        require_whole_number("dashboard_pictures", pictures, 0)
        self.count = pictures
        self._shown: ShownPictures | None = None
        self._images = 0
        self._seconds = 0.0
        self._since = 0.0
        self._logged_step = -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._images, self._seconds, self._since = 0, 0.0, time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        dashboards = dashboards_of(trainer)
        # A count and a clock, which wait for no GPU: it is never more than a few steps behind.
        self._images += len(batch.images) * trainer.world_size
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        # Of batches whose gradients are accumulated, each would log.
        if not dashboards or step == self._logged_step or not trainer._logger_connector.should_update_logs:
            return
        seconds = self._seconds + time.perf_counter() - self._since
        _log(trainer, {"train/images_per_second": self._images / seconds})
        self._images, self._seconds, self._since, self._logged_step = 0, 0.0, time.perf_counter(), step

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._seconds += time.perf_counter() - self._since

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking and dashboards_of(trainer):
            self._show(trainer, pl_module)
        self._since = time.perf_counter()

    def _show(self, trainer: Any, pl_module: Any) -> None:
        detections, objects = pl_module.scores.detections(), pl_module.scores.objects()
        classes = trainer.datamodule.classes
        curves, num_objects = precision_recall_curves(detections, objects, len(classes))
        by_class = average_curves(curves, num_objects, "area").average_precision
        _log(
            trainer, {f"ap_by_class/{name}": float(ap) for name, ap in zip(classes, by_class, strict=True) if ap == ap}
        )
        if self._shown is None:
            self._shown = ShownPictures(trainer.datamodule.val_pictures, rows_to_show(objects, self.count))
        if not len(self._shown):
            return
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        found, truth = worth_showing(self._shown.records(detections)), self._shown.records(objects)
        for dashboard in dashboards_of(trainer):
            dashboard.show_pictures(self._shown, found, truth, classes, step)


def _log(trainer: Any, numbers: dict[str, float]) -> None:
    for dashboard in dashboards_of(trainer):
        dashboard.log_metrics(numbers, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
