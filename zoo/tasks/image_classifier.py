"""Image classification by cross-entropy, for any network with logits out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from zoo.core.modes import evaluating
from zoo.core.text import counted
from zoo.data.transform import Picture, Transform, to_pixels
from zoo.diagnostics.forward import logits_in
from zoo.diagnostics.trace.snapshot import eagerly
from zoo.errors import UserError
from zoo.tasks.base import Record, Task, ramp
from zoo.tasks.by_class import (
    balanced_accuracy,
    check_class_weights,
    macro_f1,
    weights_of,
)
from zoo.tasks.schedule import Schedule


class ImageClassifier(Task):
    """Trains a network from normalized images (B, C, H, W) to logits (B, K).

    Logs ``train/loss`` (with label smoothing) and ``train/accuracy`` (both of augmented images),
    ``val/loss`` and ``test/loss`` (negative
    log-likelihood in nats, no smoothing and no weights), ``val/accuracy``, ``test/accuracy``,
    ``balanced_accuracy`` and ``macro_f1`` of both, and ``lr``. A run of the command line logs
    ``train_eval/loss`` and ``train_eval/accuracy`` as well, of clean training images, which compare
    with validation's.

    Args:
        network: any module with logits out.
        optimizer: ``sgd`` (Nesterov), ``adamw``, ``muon``, or another of timm's optimizers.
        lr: peak learning rate.
        weight_decay: weight decay of matrices and filters; norms and biases are never decayed.
        momentum: momentum of ``sgd`` and ``muon``.
        optimizer_args: further arguments of the optimizer.
        schedule: after the warm-up, ``linear``, ``cosine`` or ``trapezoid`` down to zero, or
            ``constant``.
        warmup: part of the run, between 0 and 1, or a number of steps from 1 up.
        label_smoothing: part of the target spread over all classes (Szegedy et al. 2016,
            section 7).
        class_weights: weight of each class in the training loss: a number a class, or ``balanced``,
            by which all classes count the same; null weights all images the same.
        ema_decay: decay of the averaged weights, which are validated and saved; null for none.
        channels_last: memory format of images and filters; faster for convolutions.
        compile: compiles the network by torch.compile.
        record: records the training step as a CUDA graph; ``auto`` where that is possible.
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
        class_weights: Literal["balanced"] | list[float] | None = None,
        ema_decay: float | None = None,
        channels_last: bool = False,
        compile: bool = False,
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
            channels_last=channels_last,
            compile=compile,
            record=record,
        )
        if not 0 <= label_smoothing < 1:
            raise UserError(
                f"model.label_smoothing is {label_smoothing}: it must be at least 0 and below 1"
            )
        check_class_weights(class_weights)
        self.label_smoothing, self.class_weights = label_smoothing, class_weights
        self._weights: Tensor | None = None  # of each class in the loss
        self.calibration: dict[str, Any] = {}  # fitted to the weights when they were published
        # Means over samples, not over batches, and over all processes.
        self.metrics = nn.ModuleDict(
            {
                f"{stage}_{name}": MeanMetric()
                for stage in ("validate", "test")
                for name in ("loss", "accuracy")
            }
        )
        self.by_class = nn.ModuleDict()  # counts of each stage, once its classes are known
        # Images by true and predicted class (K, K), of the latest validation or test.
        self.confusion: Tensor | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "example_input"):
            self._check_that_it_fits(data)
        if stage == "fit":
            self._weights = weights_of(self.class_weights, data)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.calibration = {}  # of weights that are about to change
        if self._weights is not None:
            self._weights = self._weights.to(self.device)

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
                f"{name} has {counted(classes, 'class', 'classes')}, and the network "
                f"{counted(outputs, 'output')}: give --model.network.num_classes {classes}"
            )
        if isinstance(self.class_weights, list) and len(self.class_weights) != outputs:
            numbers = counted(len(self.class_weights), "number")
            raise UserError(
                f"model.class_weights has {numbers} for {counted(outputs, 'class', 'classes')}: "
                "give one each"
            )

    def golden(self) -> Tensor:
        return self(ramp([2, *self.data_info["input_shape"]]))

    def training_values(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch
        try:
            logits = self(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"a training batch of {len(images)} leaves BatchNorm one value per channel, whose "
                "variance is not defined: set data.drop_last true, or another data.batch_size "
                f"(epoch {self.current_epoch}, batch {self.trainer.fit_loop.epoch_loop.batch_idx})"
                "; the last checkpoint is intact"
            ) from None
        loss = F.cross_entropy(
            logits.float(), labels, self._weights, label_smoothing=self.label_smoothing
        )
        # Of mixed images, whose labels are (B, K), the greater part counts.
        accuracy = (logits.detach().argmax(1) == _hard(labels)).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        return self._evaluate(batch, "validate", "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        return self._evaluate(batch, "test", "test")

    def on_validation_epoch_end(self) -> None:
        self._log_by_class("validate", "val")

    def on_test_epoch_end(self) -> None:
        self._log_by_class("test", "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Predicts class probabilities (B, K) of a batch (images, labels), or of images alone.

        At the calibrated temperature, where the weights were published with one.
        """
        return torch.softmax(self(self.inputs_of(batch)).float() / self.temperature, dim=1)

    @property
    def temperature(self) -> float:
        """What logits are divided by before the softmax (Guo et al., ICML 2017, section 4.2)."""
        return float(self.calibration.get("temperature", 1.0))

    @property
    def transform(self) -> Transform:
        """Turns a decoded image, uint8 (C, H, W), into what the network takes, as in evaluation."""
        return Transform(self.data_info)

    def predict(self, images: Iterable[Picture], batch_size: int = 64) -> Tensor:
        """Predicts the classes of images of any kind, on the device that the task is on.

        Args:
            images: paths of files, PIL's images, arrays uint8 (H, W) or (H, W, C), or tensors
                uint8 (C, H, W), of any size.
            batch_size: images at a time.

        Returns:
            Probabilities (N, K) on the CPU, by ``data_info["classes"]``.

        Raises:
            UserError: an image cannot be read, or the task does not know its normalization.
        """
        transform = self.transform
        probabilities = [torch.empty(0, len(self.data_info.get("classes", [])))]
        with evaluating(self), torch.inference_mode():
            for chunk in _chunks(images, batch_size):
                batch = torch.stack([transform(to_pixels(i, transform.channels)) for i in chunk])
                probabilities.append(self.predict_step(batch.to(self.device), 0).cpu())
        return torch.cat(probabilities[1:] or probabilities).clone()

    def scores(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Computes loss (nats, no smoothing) and accuracy (B,) of each image."""
        return _scores(self(images).float(), labels)

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, prefix: str) -> Tensor | None:
        """Logits (B, K), for whoever looks at single images."""
        images, labels = batch
        if not len(images):  # a last batch of which nothing could be read
            return None
        logits = self(images).float()
        if stage not in self.by_class:
            # Arguments are not checked: that would wait for the device at every batch.
            counts = MulticlassConfusionMatrix(logits.shape[1], validate_args=False)
            self.by_class[stage] = counts.to(self.device)
        self.by_class[stage].update(logits, labels)  # type: ignore[operator]
        for name, value in _scores(logits, labels).items():
            metric = self.metrics[f"{stage}_{name}"]
            metric.update(value)  # type: ignore[operator]
            self.log(
                f"{prefix}/{name}", metric, on_epoch=True, prog_bar=True, batch_size=len(images)
            )
        return logits

    def _log_by_class(self, stage: str, prefix: str) -> None:
        if stage not in self.by_class:
            return
        counts: Any = self.by_class[stage]
        self.confusion = matrix = counts.compute()
        counts.reset()
        self.log(f"{prefix}/balanced_accuracy", balanced_accuracy(matrix), sync_dist=True)
        self.log(f"{prefix}/macro_f1", macro_f1(matrix), sync_dist=True)


def _scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Loss and accuracy (B,) of logits (B, K)."""
    return {
        "loss": F.cross_entropy(logits, labels, reduction="none"),
        "accuracy": (logits.argmax(1) == labels).float(),
    }


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most ``size`` items each."""
    waiting = iter(items)
    while chunk := list(islice(waiting, size)):
        yield chunk


def _hard(labels: Tensor) -> Tensor:
    """Labels (B,) of labels (B,) or of shares (B, K)."""
    return labels.argmax(1) if labels.ndim == 2 else labels
