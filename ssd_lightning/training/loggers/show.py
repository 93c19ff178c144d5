"""The callback that shows pictures, scores by class and speed on dashboards."""

from typing import Any

import lightning

from ssd_lightning.require import require_whole_number
from ssd_lightning.scoring.average_precision import average_curves, precision_recall_curves
from ssd_lightning.structures import Batch
from ssd_lightning.training.loggers.dashboard import dashboards_of
from ssd_lightning.training.loggers.shown_pictures import ShownPictures, rows_to_show, worth_showing
from ssd_lightning.training.progress import Throughput


class ShowOnDashboards(lightning.Callback):
    """Callback that shows pictures and the AP of each class after every validation, and images/s while training.

    These numbers go to dashboards only. The speed depends on the machine, but the metrics of a run must be equal to the
    bit when its config is trained again.

    Args:
        pictures: number of pictures. They are the same every time, with objects of as many classes as possible.
    """

    def __init__(self, pictures: int) -> None:
        require_whole_number("dashboard_pictures", pictures, 0)
        self.count = pictures
        self._shown: ShownPictures | None = None
        self._throughput = Throughput()
        self._logged_step = -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._throughput.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        dashboards = dashboards_of(trainer)
        # A GPU may be a few steps behind this count, which does not wait for it.
        self._throughput.add(len(batch.images) * trainer.world_size)
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        # A batch that only adds to the gradients has the number of the step before, which is logged already.
        if not dashboards or step == self._logged_step or not trainer._logger_connector.should_update_logs:
            return
        _log(trainer, {"train/images_per_second": self._throughput.take()})
        self._logged_step = step

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._throughput.pause()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking and dashboards_of(trainer):
            self._show(trainer, pl_module)
        self._throughput.resume()

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
