"""The LightningModule that trains an SSD: it connects model, matcher, loss and post-processing, and logs."""

import copy
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ssd_lightning import collectives
from ssd_lightning.detector.losses import MinedCrossEntropy, MultiBoxLoss, plain_errors
from ssd_lightning.detector.matching import AdaptiveMatcher, BoxMatcher, boxes_of_shapes
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.postprocess import PostProcess
from ssd_lightning.require import require_part, require_whole_number
from ssd_lightning.scoring.scores import DetectionScores
from ssd_lightning.structures import Batch
from ssd_lightning.training.checkpoint import (
    CONFIG_KEY,
    refuse_old_targets,
    refuse_other_model,
    refuse_other_weights,
    weights_in,
)
from ssd_lightning.training.parameter_groups import ParameterGroups
from ssd_lightning.training.resuming import refuse_forgotten_best, refuse_other_optimizer, refuse_other_progress
from ssd_lightning.training.schedules import warmup_cosine
from ssd_lightning.training.step_statistics import TrainingStatistics

MakeOptimizer = Callable[[Iterable[Any]], Optimizer]
MakeScheduler = Callable[[Optimizer, int], LRScheduler]
"""Function that makes a schedule from the optimizer and the number of steps of the whole run."""

TRAINING_VALUES = ("train/loss", "train/loss_classification", "train/loss_localization")
SCORED_VALUES = ("loss", "loss_classification", "loss_localization", "class_error", "box_mae")
"""Metrics of a validation or a test beside the scores. Losses are means over positives, all others over pictures."""


class SSDModule(lightning.LightningModule):
    """LightningModule of a Single Shot MultiBox Detector. The default of each part but the model is the paper's.

    It logs ``train/loss`` with its two parts; ``val/loss``, ``val/map_voc07``, ``val/map_voc12``, ``val/map_50``,
    ``val/map_75`` and ``val/map``; and ``val/class_error`` and ``val/box_mae`` of d2l.ai, section 14.7. A test logs the
    same with ``test/`` in place of ``val/``. For each step
    that the trainer logs, it also logs the statistics of
    :class:`~ssd_lightning.training.step_statistics.TrainingStatistics`, as ``statistics/<name>``.

    Args:
        model: the network with its default boxes.
        matcher: assigns objects to default boxes.
        loss: computes the losses from predictions, matches and default boxes.
        postprocess: turns predictions into detections, for scoring.
        optimizer: makes an optimizer from parameter groups; default: AdamW with the learning rate 1e-3.
        lr_scheduler: makes a schedule from the optimizer and the number of steps; default: warm-up and cosine.
        parameter_groups: makes the parameter groups of the optimizer; default: one group.
        lr_reference_batch: number of pictures in a step, over all ranks and accumulated batches, for which the
            optimizer's learning rate is meant. With another number the learning rate is scaled in proportion
            (arXiv 1706.02677). ``None``: the learning rate is not scaled.
        config: plain data that is stored in every checkpoint, and from which
            :func:`~ssd_lightning.training.checkpoint.load_detector` rebuilds the model.
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
        lr_reference_batch: int | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if lr_reference_batch is not None:
            require_whole_number("lr_reference_batch", lr_reference_batch, 1)
        parts = {
            "matcher": matcher,
            "loss": loss,
            "postprocess": postprocess,
            "optimizer": optimizer,
            "lr_scheduler": lr_scheduler,
            "parameter_groups": parameter_groups,
        }
        for name, part in parts.items():
            if part is not None:
                require_part(name, part)
        most = sum(model.boxes_per_cell)
        if isinstance(matcher, AdaptiveMatcher) and (shapes := len(boxes_of_shapes(model.default_boxes))) > most:
            raise ValueError(
                f"matcher: expected default boxes of at most {most} shapes for {type(matcher).__name__}, got {shapes}. "
                "Try model.default_boxes.clip=null, or matcher=iou50."
            )
        # Pictures are channels-last in memory, and convolutions on CPUs and tensor cores are faster in this format.
        self.model = model.to(memory_format=torch.channels_last)
        self.matcher = matcher or BoxMatcher()
        self.loss = loss or MultiBoxLoss()
        self.postprocess = postprocess or PostProcess()
        self.make_optimizer = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
        self.make_scheduler = lr_scheduler or warmup_cosine
        self.parameter_groups = parameter_groups or ParameterGroups()
        self.lr_reference_batch = lr_reference_batch
        self.config = config
        self.scores = DetectionScores(model.num_classes)
        self._scored: list[tuple[int, torch.Tensor]] = []
        classification = self.loss.classification if isinstance(self.loss, MultiBoxLoss) else None
        self.statistics = TrainingStatistics(
            model.boxes_of_level,
            self.matcher.iou_threshold,
            classification if isinstance(classification, MinedCrossEntropy) else None,
        )
        self._has_statistics = False

    def setup(self, stage: str) -> None:
        # DDP would broadcast the buffers in every step, also in validation, where ranks may have no batch.
        buffers = [name for name, _ in self.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, buffers)

    def on_train_start(self) -> None:
        self.statistics.clear()  # A step that was broken off may have left some.

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        trainer: Any = self.trainer
        every = trainer.log_every_n_steps
        self._has_statistics = bool(trainer.loggers) and every > 0 and (trainer.global_step + 1) % every == 0

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        predictions = self.model(batch.images)
        matches = self.matcher(batch.objects, self.model.default_boxes)
        losses = self.loss(predictions, matches, self.model.default_boxes)
        # The mean over ranks is the loss of the whole batch, as the mean of their gradients is its gradient.
        values = collectives.all_reduce_sum(torch.stack(losses).detach()) / collectives.world_size()
        if self._trainer is not None:  # A stored step can be repeated without one.
            self.log_dict(dict(zip(TRAINING_VALUES, values, strict=True)), batch_size=len(batch.images))
        if self._has_statistics:
            self.statistics.add(predictions, matches, batch.objects, self.model.default_boxes)
        return losses.total

    def optimizer_step(self, *arguments: Any, **settings: Any) -> None:
        super().optimizer_step(*arguments, **settings)
        # self.log would repeat a value of an earlier step where this step has none.
        if self._has_statistics:
            values = {f"statistics/{name}": value for name, value in self.statistics.take().items()}
            for logger in self.loggers:
                logger.log_metrics(values, self.trainer.global_step)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if len(batch.images) == 0:  # The last pictures are another rank's.
            return
        predictions = self.model(batch.images)
        matches = self.matcher(batch.objects, self.model.default_boxes)
        losses = self.loss(predictions, matches, self.model.default_boxes)
        errors = plain_errors(predictions, matches, self.model.default_boxes)
        positives = (matches.labels > 0).sum().float()
        self._scored.append((len(batch.images), torch.stack([positives, *losses, *errors])))
        self.scores.update(batch, self.postprocess(predictions, self.model.default_boxes))

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        self.scores.reset()
        self._scored = []
        collectives.broadcast_buffers(self.model)

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, prefix: str) -> None:
        self.scores.gather()
        numbers = [(pictures, values.tolist()) for pictures, values in self._scored]
        ranks = collectives.gather([ScoredBatch(count, int(values[0]), values[1:]) for count, values in numbers])
        scores = None
        if ranks is not None:
            batches = [batch for rank in ranks for batch in rank]
            values = mean_over_batches(batches, isinstance(self.loss, MultiBoxLoss)) | self.scores.compute()
            scores = {f"{prefix}/{key}": value for key, value in values.items()}
        # All ranks hold equal values. "max" keeps them exact, where a mean could round.
        self.log_dict(collectives.broadcast(scores), sync_dist=True, reduce_fx="max")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.new_optimizer()
        for group in optimizer.param_groups:
            group["lr"] *= self._lr_factor_of_batch()
        trainer: Any = self.trainer
        with warnings.catch_warnings():
            # Lightning warns that a short run logs nothing, which is prevented below.
            warnings.filterwarnings("ignore", "The number of training batches")
            trainer.fit_loop.setup_data()
        steps = trainer.estimated_stepping_batches
        if steps == math.inf:
            raise ValueError("trainer.max_epochs: expected a number of epochs, got -1. Try trainer.max_steps instead.")
        # Every epoch logs its loss, and so does a run that is shorter than an epoch.
        steps_of_epoch = max(1, trainer.num_training_batches / trainer.accumulate_grad_batches)
        trainer.log_every_n_steps = int(min(trainer.log_every_n_steps, steps_of_epoch, steps))
        scheduler = self.make_scheduler(optimizer, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def new_optimizer(self, model: SSD | None = None) -> Optimizer:
        """Make the optimizer, with the learning rate of each parameter group but without the batch's factor.

        Args:
            model: the network whose weights it changes; ``None``: that of the module.
        """
        optimizer = self.make_optimizer(self.parameter_groups(model or self.model))
        for group in optimizer.param_groups:
            group["lr"] *= group["lr_factor"]
        return optimizer

    def _lr_factor_of_batch(self) -> float:
        if self.lr_reference_batch is None:
            return 1.0
        trainer: Any = self.trainer
        if trainer.datamodule is None:
            raise ValueError(
                "lr_reference_batch: expected a trainer with a datamodule, got none. Try lr_reference_batch=None."
            )
        pictures = trainer.datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        return pictures / self.lr_reference_batch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.config is not None:
            checkpoint[CONFIG_KEY] = self.config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, or whose state does not fit this run.

        Raises:
            ValueError: with the file and the first differences.
        """
        path = "the file" if self._trainer is None else str(self._trainer.ckpt_path)
        stored = checkpoint.get(CONFIG_KEY)
        refuse_old_targets(stored, path)
        if self.config is not None and isinstance(stored, dict):
            refuse_other_model(stored.get("model", {}), self.config["model"], path)
        refuse_other_weights(weights_in(checkpoint, path), self.state_dict(), path)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            refuse_other_progress(checkpoint, self._trainer.fit_loop.state_dict(), path)
            refuse_forgotten_best(checkpoint, self._trainer.checkpoint_callbacks, path)
            optimizer = self.new_optimizer(copy.deepcopy(self.model))
            refuse_other_optimizer(optimizer, self.make_scheduler(optimizer, 100), checkpoint, path)


class ScoredBatch(NamedTuple):
    """The metrics of one batch of a validation or a test, and the sizes by which they count."""

    pictures: int
    positives: int
    """Number of positive default boxes."""
    values: list[float]
    """Metrics in the order of ``SCORED_VALUES``."""


def mean_over_batches(batches: list[ScoredBatch], losses_per_positive: bool) -> dict[str, float]:
    """Return the metrics of all batches as those of one batch, so that they do not depend on the batch size.

    Sums are rounded once, so that the order of the batches does not matter.

    Args:
        batches: the batches of all ranks.
        losses_per_positive: the losses are sums that were divided by the number of positives, at least 1. Otherwise
            they are means over pictures, as all other metrics are.
    """
    means = {}
    for column, name in enumerate(SCORED_VALUES):
        if losses_per_positive and name.startswith("loss"):
            weights = [max(batch.positives, 1) for batch in batches]
            total = max(sum(batch.positives for batch in batches), 1)
        else:
            weights = [batch.pictures for batch in batches]
            total = sum(weights)
        weighted = (weight * batch.values[column] for weight, batch in zip(weights, batches, strict=True))
        means[name] = math.fsum(weighted) / total
    return means
