"""Image classification by cross-entropy, for any network with logits out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from zoo.core.modes import evaluating
from zoo.diagnostics.forward import logits_in
from zoo.diagnostics.trace.snapshot import eagerly
from zoo.errors import UserError
from zoo.tasks.base import Task, ramp
from zoo.tasks.schedule import Schedule


class ImageClassifier(Task):
    """Trains a network from normalized images (B, C, H, W) to logits (B, K).

    Logs ``train/loss`` (with label smoothing) and ``train/accuracy`` (both of augmented images),
    ``val/loss`` and ``test/loss`` (negative
    log-likelihood in nats, no smoothing), ``val/accuracy``, ``test/accuracy`` and ``lr``. A run of
    the command line logs ``train_eval/loss`` and ``train_eval/accuracy`` besides, of clean training
    images, which compare with validation's.

    Args:
        network: any module with logits out.
        optimizer: ``sgd`` (Nesterov), ``adamw``, ``muon``, or another of timm's optimizers.
        lr: peak learning rate.
        weight_decay: of matrices and filters; norms and biases are never decayed.
        momentum: of ``sgd`` and ``muon``.
        optimizer_args: further arguments of the optimizer.
        schedule: after the warm-up, ``linear``, ``cosine`` or ``trapezoid`` down to zero, or
            ``constant``.
        warmup: part of the run, between 0 and 1, or a number of steps from 1 up.
        label_smoothing: part of the target spread over all classes (Szegedy et al. 2016,
            section 7).
        ema_decay: of the averaged weights, which are what is validated and saved; null for none.
        channels_last: memory format of images and filters; faster for convolutions.
        compile: the network, by torch.compile.
    """

    monitor = "val/accuracy"
    headline = "test/accuracy"
    monitor_mode = "max"

    def __init__(
        self,
        network: nn.Module,
        optimizer: str = "sgd",
        lr: float = 0.1,
        weight_decay: float = 5e-4,
        momentum: float = 0.9,
        optimizer_args: dict[str, Any] | None = None,
        schedule: Schedule = "cosine",
        warmup: float = 0.1,
        label_smoothing: float = 0.0,
        ema_decay: float | None = None,
        channels_last: bool = False,
        compile: bool = False,
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
            channels_last=channels_last,
            compile=compile,
        )
        if not 0 <= label_smoothing < 1:
            raise UserError(
                f"model.label_smoothing is {label_smoothing}: it must be at least 0 and below 1"
            )
        self.label_smoothing = label_smoothing
        # Means over samples, not over batches, and over all processes.
        self.metrics = nn.ModuleDict(
            {
                f"{stage}_{name}": MeanMetric()
                for stage in ("validate", "test")
                for name in ("loss", "accuracy")
            }
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "example_input"):
            self._check_that_it_fits(data)

    def _check_that_it_fits(self, data: Any) -> None:
        """One forward before the first batch.

        Raises:
            UserError: the network does not take the images, or has another number of classes.
        """
        images: Tensor = data.example_input()
        name, classes = (
            self.data_info.get("name", "the data"),
            len(self.data_info.get("classes", [])),
        )
        parameter = next(self.network.parameters(), images)
        try:
            with eagerly(self.network), evaluating(self.network), torch.no_grad():
                outputs = logits_in(self.network(images.to(parameter))).shape[1]
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            shape = " × ".join(str(size) for size in images.shape[1:])
            raise UserError(
                f"the network does not take images of {shape}, as {name} has them: {reason[0]}"
            ) from None
        if classes and outputs != classes:
            raise UserError(
                f"{name} has {classes} classes, and the network {outputs} outputs: give "
                f"--model.network.num_classes {classes}"
            )

    def golden(self) -> Tensor:
        return self(ramp([2, *self.data_info["input_shape"]]))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        try:
            logits = self(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"a training batch of {len(images)} leaves BatchNorm one value per channel, whose "
                "variance is not defined: set data.drop_last true, or another data.batch_size "
                f"(epoch {self.current_epoch}, batch {batch_idx}); the last checkpoint is intact"
            ) from None
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        # Of mixed images, whose labels are (B, K), the greater part counts.
        accuracy = (logits.detach().argmax(1) == _hard(labels)).float().mean()
        loss = self.check_finite(loss)
        self.log_training(len(images), loss=loss.detach(), accuracy=accuracy)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "validate", "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test", "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Class probabilities (B, K) of a batch (images, labels), or of images alone."""
        return torch.softmax(self(self.inputs_of(batch)).float(), dim=1)

    def scores(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss (nats, no smoothing) and accuracy (B,) of each image."""
        logits = self(images).float()
        return {
            "loss": F.cross_entropy(logits, labels, reduction="none"),
            "accuracy": (logits.argmax(1) == labels).float(),
        }

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, prefix: str) -> None:
        images, labels = batch
        if not len(images):  # a last batch of which nothing could be read
            return
        for name, value in self.scores(images, labels).items():
            metric = self.metrics[f"{stage}_{name}"]
            metric.update(value)  # type: ignore[operator]
            self.log(
                f"{prefix}/{name}", metric, on_epoch=True, prog_bar=True, batch_size=len(images)
            )


def _hard(labels: Tensor) -> Tensor:
    """Labels (B,) of labels (B,) or of shares (B, K)."""
    return labels.argmax(1) if labels.ndim == 2 else labels
