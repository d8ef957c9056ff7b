"""Semantic segmentation by cross-entropy and Dice, for any network with logits of pixels out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassJaccardIndex

from zoo.core.modes import evaluating
from zoo.core.pictures import save_segmentation
from zoo.errors import UserError
from zoo.tasks.base import Record, Task, ramp
from zoo.tasks.schedule import Schedule

SHOWN = 8  # images in a run's picture


class Segmenter(Task):
    """Trains a network from normalized images (B, C, H, W) to logits of each pixel (B, K, H, W).

    The loss is the cross-entropy of pixels plus ``dice_weight`` times the soft Dice loss (Milletari
    et al., 3DV 2016, section 3), which small classes count in as much as large ones. Logs
    ``train/loss``; and of validation and test images ``loss``, ``accuracy`` of pixels, and ``iou``,
    the intersection over union, averaged over classes.

    Args:
        network: any module with logits of pixels out.
        optimizer: ``sgd`` (Nesterov), ``adamw``, ``muon``, or another of timm's optimizers.
        lr: peak learning rate.
        weight_decay: weight decay of matrices and filters; norms and biases are never decayed.
        momentum: momentum of ``sgd`` and ``muon``.
        optimizer_args: further arguments of the optimizer.
        schedule: after the warm-up, ``linear``, ``cosine`` or ``trapezoid`` down to zero, or
            ``constant``.
        warmup: part of the run, between 0 and 1, or a number of steps from 1 up.
        dice_weight: weight of the Dice loss, relative to the cross-entropy.
        ema_decay: decay of the averaged weights, which are validated and saved; null for none.
        record: records the training step as a CUDA graph; ``auto`` where that is possible.
    """

    monitor = "val/iou"
    headline = "test/iou"
    monitor_mode = "max"

    def __init__(
        self,
        network: nn.Module,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.9,
        optimizer_args: dict[str, Any] | None = None,
        schedule: Schedule = "linear",
        warmup: float = 0.1,
        dice_weight: float = 1.0,
        ema_decay: float | None = None,
        record: Record = "auto",
    ) -> None:
        super().__init__(
            network,
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            optimizer_args=optimizer_args,
            schedule=schedule,
            warmup=warmup,
            ema_decay=ema_decay,
            record=record,
        )
        if dice_weight < 0:
            raise UserError(f"model.dice_weight is {dice_weight}: it cannot be negative")
        self.dice_weight = dice_weight
        self.metrics = nn.ModuleDict()
        self._shown: tuple[Tensor, Tensor] | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        classes = len(self.data_info.get("classes", ()))
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "example_input"):
            self._check_that_it_fits(data.example_input(), classes)
        for name in ("validate", "test"):
            if f"{name}_iou" not in self.metrics:
                kinds: dict[str, Metric] = {"loss": MeanMetric(), "accuracy": MeanMetric()}
                kinds["iou"] = MulticlassJaccardIndex(classes)
                self.metrics.update({f"{name}_{kind}": one for kind, one in kinds.items()})

    def _check_that_it_fits(self, images: Tensor, classes: int) -> None:
        """One forward before the first batch.

        Raises:
            UserError: the network does not take the images, or has no logits of their pixels.
        """
        parameter = next(self.network.parameters())
        try:
            with torch.no_grad(), evaluating(self.network):
                logits = self(images.to(parameter))
        except (ValueError, RuntimeError) as error:
            raise UserError(f"the network does not take the images: {error}") from None
        expected = [len(images), classes, *images.shape[2:]]
        if list(logits.shape) != expected:
            raise UserError(
                f"the network's output is {list(logits.shape)}, and the logits of these images' "
                f"pixels are {expected}: give --model.network.num_classes {classes}"
            )

    def golden(self) -> Tensor:
        return self(ramp([2, *self.data_info["input_shape"]])).mean((2, 3))

    def training_values(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, masks = batch
        logits = self(images).float()
        loss = F.cross_entropy(logits, masks) + self.dice_weight * dice_loss(logits, masks)
        accuracy = (logits.detach().argmax(1) == masks).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        if batch_idx == 0:
            self._shown = batch[0][:SHOWN], batch[1][:SHOWN]
        self._evaluate(batch, "validate", "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test", "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Predicts class probabilities of pixels (B, K, H, W)."""
        return torch.softmax(self(self.inputs_of(batch)).float(), dim=1)

    def scores(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Computes cross-entropy (nats) and accuracy (B,), means over each image's pixels."""
        logits = self(images).float()
        return _scores(logits, labels)

    def keep_sample(self, folder: Path, epoch: int) -> None:
        """Saves image, mask and prediction of the first validation images."""
        if self._shown is None:
            return
        images, masks = self._shown
        with torch.no_grad(), evaluating(self.network):
            predicted = self(images).argmax(1)
        classes = self.data_info["classes"]
        title = f"epoch {epoch}: image, mask, prediction"
        save_segmentation(images, masks, predicted, classes, folder / "segmentation.png", title)

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, prefix: str) -> None:
        images, masks = batch
        logits = self(images).float()
        values: dict[str, tuple[Tensor, ...]] = {
            name: (value,) for name, value in _scores(logits, masks).items()
        }
        values["iou"] = logits.argmax(1), masks
        for name, arguments in values.items():
            metric = self.metrics[f"{stage}_{name}"]
            assert isinstance(metric, Metric)
            metric.update(*arguments)
            self.log(
                f"{prefix}/{name}", metric, on_epoch=True, prog_bar=True, batch_size=len(images)
            )


def _scores(logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
    return {
        "loss": F.cross_entropy(logits, masks, reduction="none").mean((1, 2)),
        "accuracy": (logits.argmax(1) == masks).float().mean((1, 2)),
    }


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Computes 1 - the soft Dice coefficient, averaged over the classes of the batch.

    Args:
        logits: (B, K, H, W).
        masks: int64 (B, H, W).
    """
    probabilities = logits.softmax(1)
    # torch's one_hot looks for the largest class first, and would wait for the device.
    hot = torch.zeros_like(probabilities).scatter_(1, masks[:, None], 1.0)
    over = (0, 2, 3)
    both, sizes = (probabilities * hot).sum(over), (probabilities + hot).sum(over)
    present = hot.sum(over) > 0
    dice = torch.where(present, 2 * both / sizes, 0.0)
    return 1 - dice.sum() / present.sum()
