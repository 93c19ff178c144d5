"""The training of an SSD as a LightningModule. No maths of its own: it wires the parts and logs."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ssd_lightning.checkpoint import CONFIG_KEY
from ssd_lightning.losses import MultiBoxLoss, plain_errors
from ssd_lightning.matching import BoxMatcher
from ssd_lightning.metrics import DetectionScores
from ssd_lightning.model import SSD
from ssd_lightning.parameter_groups import ParameterGroups
from ssd_lightning.postprocess import PostProcess
from ssd_lightning.schedules import warmup_cosine
from ssd_lightning.structures import Batch, Losses

MakeOptimizer = Callable[[Iterable[Any]], Optimizer]
MakeScheduler = Callable[[Optimizer, int], LRScheduler]
"""From the optimizer and the number of steps of the whole run."""


class SSDModule(lightning.LightningModule):
    """Everything but the model has the paper's default.

    Args:
        model: the network with its default boxes.
        matcher: which default box answers for which object.
        loss: from predictions, matches and default boxes.
        postprocess: from predictions to detections, for scoring.
        optimizer: makes one from the parameters; default: AdamW at 1e-3.
        lr_scheduler: makes one from the optimizer and the number of steps; default: warm-up and cosine.
        parameter_groups: gives the optimizer its groups; default: all parameters alike.
        config: plain data stored in every checkpoint, from which
            :func:`ssd_lightning.checkpoint.load_detector` rebuilds the model.

    Logs ``train/loss`` and its two parts, ``val/map_voc07``, ``val/map_voc12``, ``val/map_50``, ``val/map_75``,
    ``val/map``, ``val/loss``, and d2l.ai's ``val/class_error`` and ``val/box_mae``.
    """

    def __init__(
        self,
        model: SSD,
        matcher: BoxMatcher | None = None,
        loss: nn.Module | None = None,
        postprocess: PostProcess | None = None,
        optimizer: MakeOptimizer | None = None,
        lr_scheduler: MakeScheduler | None = None,
        parameter_groups: ParameterGroups | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # Channels-last is how pictures come, and the faster order for convolutions on CPUs and tensor cores.
        self.model = model.to(memory_format=torch.channels_last)
        self.matcher = matcher or BoxMatcher()
        self.loss = loss or MultiBoxLoss()
        self.postprocess = postprocess or PostProcess()
        self.make_optimizer = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
        self.make_scheduler = lr_scheduler or warmup_cosine
        self.parameter_groups = parameter_groups or ParameterGroups()
        self.config = config
        self.scores = DetectionScores(model.num_classes)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        predictions = self.model(batch.images)
        matches = self.matcher(batch.objects, self.model.default_boxes)
        losses = self.loss(predictions, matches, self.model.default_boxes)
        self._log("train", losses, len(batch.images))
        return losses.total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        predictions = self.model(batch.images)
        matches = self.matcher(batch.objects, self.model.default_boxes)
        losses = self.loss(predictions, matches, self.model.default_boxes)
        self._log("val", losses, len(batch.images))
        errors = plain_errors(predictions, matches, self.model.default_boxes)
        self.log_dict({f"val/{name}": value for name, value in errors._asdict().items()}, batch_size=len(batch.images))
        self.scores.update(batch, self.postprocess(predictions, self.model.default_boxes))

    def on_validation_epoch_start(self) -> None:
        self.scores.reset()

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            scores = self.scores.compute()
            self.log_dict({f"val/{name}": value for name, value in scores.items()}, prog_bar=False)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.new_optimizer()
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self.make_scheduler(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def new_optimizer(self) -> Optimizer:
        optimizer = self.make_optimizer(self.parameter_groups(self.model))
        for group in optimizer.param_groups:
            group["lr"] *= group["lr_factor"]
        return optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.config is not None:
            checkpoint[CONFIG_KEY] = self.config

    def _log(self, stage: str, losses: Losses, batch_size: int) -> None:
        values = {
            f"{stage}/loss": losses.total,
            f"{stage}/loss_classification": losses.classification,
            f"{stage}/loss_localization": losses.localization,
        }
        self.log_dict(values, batch_size=batch_size)
