"""Fine-tuning: which parts of a trained network are trained, when, and how fast."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from zoo.core.modes import evaluating
from zoo.core.text import counted
from zoo.errors import UserError
from zoo.networks import freezing
from zoo.networks.base import classifier_name
from zoo.networks.features import pooled_features
from zoo.networks.lora import add_lora, merge_lora
from zoo.tasks.base import Task
from zoo.tasks.image_classifier import ImageClassifier

BACKBONE, NOTHING = "backbone", "none"
COSTS = tuple(10.0**power for power in range(-3, 4))  # of a linear probe: sklearn's C


class FreezeUntil(Callback):
    """Freezes part of a network for the first epochs of a fit.

    The optimizer knows the frozen parameters from the start; without a gradient they stay as they
    are, and so do BatchNorm's running statistics.

    Args:
        what: ``backbone``, or the stage up to which the network is frozen.
        epoch: the first epoch in which everything is trained, counted from 0.

    Raises:
        UserError: the epoch is below 1.
    """

    def __init__(self, what: str, epoch: int) -> None:
        if epoch < 1:
            raise UserError(f"unfreeze_epoch is {epoch}: give the epoch, counted from 0, from 1 up")
        self.what, self.epoch = what, epoch
        self._frozen = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not before: the optimizer would leave out what is frozen.
        if trainer.current_epoch < self.epoch:
            freeze_part(pl_module, self.what)
            self._frozen = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._frozen and trainer.current_epoch >= self.epoch:
            freezing.unfreeze(pl_module)
            self._frozen = False
            if isinstance(pl_module, Task):  # whose recorded step has no gradients of the rest
                pl_module.record_anew()


def freeze_part(model: nn.Module, what: str) -> None:
    """Freezes what ``--freeze`` names, in place: ``backbone``, a stage, or ``none``."""
    try:
        if what == BACKBONE:
            freezing.freeze(model)
        elif what != NOTHING:
            freezing.freeze(model, through=what)
    except ValueError as error:
        raise UserError(f"freeze {what}: {error}") from None


def prepare(
    task: Task,
    freeze: str = NOTHING,
    unfreeze_epoch: int | None = None,
    layer_decay: float | None = None,
    lora_rank: int | None = None,
) -> list[Callback]:
    """Makes a task ready to be fine-tuned, in place.

    Args:
        task: with trained weights.
        freeze: ``backbone`` (all but the classifier), the stage or block up to which the network
            is frozen, or ``none``; BatchNorm's running statistics with it.
        unfreeze_epoch: the epoch, counted from 0, from which everything is trained.
        layer_decay: factor of the learning rate from each layer to the one before it.
        lora_rank: trains LoRA matrices of this rank in each linear layer, and the classifier.

    Returns:
        What a trainer needs for it.

    Raises:
        UserError: the network has no such part, or two settings contradict each other.
    """
    if lora_rank is not None and freeze != NOTHING:
        raise UserError("lora_rank freezes the network itself: leave out freeze")
    if unfreeze_epoch is not None and freeze == NOTHING:
        raise UserError("unfreeze_epoch: say what is frozen before it, freeze backbone")
    if layer_decay is not None and type(task).make_optimizer is not Task.make_optimizer:
        raise UserError(f"layer_decay: {type(task).__name__} has optimizers of its own")
    task.layer_decay = layer_decay
    if lora_rank is not None:
        try:
            add_lora(task.network, lora_rank)
        except ValueError as error:
            raise UserError(str(error)) from None
    if unfreeze_epoch is None:
        freeze_part(task, freeze)
        return []
    freeze_part(task, freeze)  # refused now rather than in the fit
    freezing.unfreeze(task)
    return [FreezeUntil(freeze, unfreeze_epoch)]


def finetune(
    model: nn.Module,
    data: LightningDataModule | Iterable[Any],
    *,
    max_epochs: int = 10,
    lr: float | None = None,
    optimizer: str | None = None,
    weight_decay: float | None = None,
    freeze: str = NOTHING,
    unfreeze_epoch: int | None = None,
    layer_decay: float | None = None,
    lora_rank: int | None = None,
    trainer: dict[str, Any] | None = None,
) -> Task:
    """Fine-tunes a trained network, ours or any other.

    Args:
        model: a task, as ``zoo.load`` returns it; or any image network with logits out.
        data: a data module, or batches (images, labels), normalized.
        max_epochs: number of epochs.
        lr, optimizer, weight_decay: by default a task's own, and 1e-3, ``adamw`` and 0.05 of a
            network; another optimizer than a task's own has none of its ``optimizer_args``.
        freeze, unfreeze_epoch, layer_decay, lora_rank: as ``prepare`` takes them.
        trainer: further arguments of Lightning's Trainer.

    Returns:
        The task in evaluation mode; LoRA matrices are merged into its weights.

    Raises:
        UserError: a part to freeze does not exist, a setting is out of range, or two contradict
            each other.
    """
    if isinstance(model, Task):
        task = model
        task.change_settings(optimizer=optimizer, lr=lr, weight_decay=weight_decay)
    else:
        task = ImageClassifier(
            model,
            optimizer="adamw" if optimizer is None else optimizer,
            lr=1e-3 if lr is None else lr,
            weight_decay=0.05 if weight_decay is None else weight_decay,
        )
    callbacks = prepare(task, freeze, unfreeze_epoch, layer_decay, lora_rank)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
    arguments = {**quiet, "max_epochs": max_epochs, **(trainer or {})}
    arguments["callbacks"] = [*callbacks, *(arguments.get("callbacks") or [])]
    fit = Trainer(**arguments)
    if isinstance(data, LightningDataModule):
        fit.fit(task, datamodule=data)
    else:
        fit.fit(task, data)
    merge_lora(task.network)
    freezing.unfreeze(task)
    return task.eval()


# -- linear probe ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """A classifier on frozen features; ``accuracy`` and ``cost`` are those of the validation."""

    accuracy: float
    cost: float  # sklearn's C, the inverse of the penalty on the weights


def linear_probe(
    model: nn.Module, train: Iterable[Any], validation: Iterable[Any], seed: int = 0
) -> Probe:
    """Fits a network's classifier, in place, on features that are computed once.

    Multinomial logistic regression by L-BFGS, the penalty chosen on validation data (Kornblith et
    al., CVPR 2019, section 3). Only the last layer changes; BatchNorm statistics stay.

    Args:
        model: a task, or a network with a linear classifier.
        train: batches (images, labels), normalized, in evaluation's form.
        validation: the same, of other images.
        seed: seed of the solver.

    Returns:
        Accuracy on the validation data, and the cost chosen on them.

    Raises:
        UserError: the network has no linear classifier, or the labels are not its classes.
    """
    from sklearn.linear_model import LogisticRegression

    network: nn.Module = getattr(model, "network", model)
    name = classifier_name(network)
    head = network.get_submodule(name) if name is not None else None
    if not isinstance(head, nn.Linear):
        raise UserError(f"{type(network).__name__} has no linear classifier to fit")
    known, labels = features_of(network, train)
    held_out, answers = features_of(network, validation)
    if int(labels.max()) >= head.out_features:
        raise UserError(
            f"label {int(labels.max())} of the data, and the classifier has "
            f"{counted(head.out_features, 'output')}: replace it, zoo.load(..., num_classes=...)"
        )
    # In units of the features' own size, so that the same costs serve every network.
    scale = float(known.std()) or 1.0
    fits = [
        LogisticRegression(C=cost, max_iter=500, random_state=seed).fit(known / scale, labels)
        for cost in COSTS
    ]
    scores = [fit.score(held_out / scale, answers) for fit in fits]
    best = int(np.argmax(scores))
    weight, bias = _two_rows(fits[best].coef_, fits[best].intercept_)
    classes = torch.from_numpy(fits[best].classes_)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[classes] = torch.from_numpy(weight / scale).to(head.weight)
        if head.bias is not None:
            head.bias.fill_(float(bias.min()) - 100)  # of classes that the data do not have
            head.bias[classes] = torch.from_numpy(bias).to(head.bias)
    return Probe(scores[best], COSTS[best])


def features_of(network: nn.Module, batches: Iterable[Any]) -> tuple[Any, Any]:
    """Computes pooled features (N, D) and labels (N,) of batches, as NumPy arrays."""
    device = next(network.parameters()).device
    features: list[Tensor] = []
    labels: list[Tensor] = []
    with evaluating(network), torch.inference_mode():
        for images, targets in batches:
            if images.dtype == torch.uint8:
                raise UserError(
                    "the images are bytes (uint8): normalize them, data.normalize(images)"
                )
            features.append(pooled_features(network, images.to(device)).float().cpu())
            labels.append(targets.cpu())
    if not features:
        raise UserError("there are no images to fit a probe on")
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


def _two_rows(weight: Any, bias: Any) -> tuple[Any, Any]:
    """sklearn gives two classes one row, that of the second over the first."""
    if len(weight) > 1:
        return weight, bias
    return np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
