from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score
from torch.nn import functional as F

from tests.tasks.test_image_classifier import network, trainer
from zoo.data import Digits
from zoo.errors import UserError
from zoo.tasks import ImageClassifier
from zoo.tasks.by_class import balanced_accuracy, macro_f1, recall, weights_of


def test_metrics_of_rare_and_missing_classes_agree_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 50 + [1] * 9 + [2])
    predicted = torch.randint(0, 4, (60,), generator=generator)  # class 4 is nowhere
    matrix = torch.zeros(5, 5, dtype=torch.long)
    for true, guess in zip(labels, predicted, strict=True):
        matrix[true, guess] += 1
    expected = balanced_accuracy_score(labels, predicted)
    assert float(balanced_accuracy(matrix)) == pytest.approx(expected)
    expected = f1_score(labels, predicted, average="macro")
    assert float(macro_f1(matrix)) == pytest.approx(expected)
    each = recall_score(labels, predicted, average=None, labels=[0, 1, 2])
    assert recall(matrix)[:3].tolist() == pytest.approx(each.tolist())
    assert recall(matrix)[3:].isnan().all()


def test_a_test_logs_them_over_all_batches(tmp_path: Path) -> None:
    task, data = ImageClassifier(network()).eval(), Digits()
    (result,) = trainer(tmp_path).test(task, datamodule=data, verbose=False)
    images, labels = data._test
    predicted = task(data.normalize(images)).argmax(1)
    expected = balanced_accuracy_score(labels, predicted)
    assert result["test/balanced_accuracy"] == pytest.approx(expected, abs=1e-6)
    expected = f1_score(labels, predicted, average="macro")
    assert result["test/macro_f1"] == pytest.approx(expected, abs=1e-6)
    assert int(task.confusion.sum()) == 360


def test_class_weights_weigh_the_loss(tmp_path: Path) -> None:
    data = Digits(batch_size=64)
    task = ImageClassifier(network(), class_weights="balanced", lr=1e-9)
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(task, datamodule=data)
    counts = data._train[1].bincount().double()
    expected = len(data._train[1]) / (10 * counts)
    assert task._weights.tolist() == pytest.approx(expected.tolist())

    given = [float(k) for k in range(10)]
    task = ImageClassifier(network(), class_weights=given, lr=1e-9)
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    task.network.register_forward_hook(lambda _, x, y: seen.append((x[0], y.detach())))
    torch.manual_seed(0)
    run.fit(task, datamodule=data)
    labels = next(iter(data.train_dataloader()))[1]
    torch.manual_seed(0)
    logits = seen[-1][1]
    losses = F.cross_entropy(logits, labels, reduction="none")
    weights = labels.float()
    loss = float((losses * weights).sum() / weights.sum())
    assert float(run.callback_metrics["train/loss"]) == pytest.approx(loss, rel=1e-5)


def test_class_weights_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for given in ("even", [1.0, -1.0], [0.0, 0.0], [float("inf"), 1.0]):
        with pytest.raises(UserError, match=r"model\.class_weights"):
            ImageClassifier(network(), class_weights=given)
    task = ImageClassifier(network(), class_weights=[1.0, 2.0])
    with pytest.raises(UserError, match="has 2 numbers for 10 classes: give one each"):
        trainer(tmp_path).fit(task, datamodule=Digits())
    with pytest.raises(UserError, match="counts its classes"):
        weights_of("balanced", object())
