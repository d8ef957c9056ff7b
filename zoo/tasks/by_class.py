"""Metrics by class, which the accuracy of all images hides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.core.text import shown
from zoo.errors import UserError


def recall(matrix: Tensor) -> Tensor:
    """Computes the share of each class's images that are recognized, (K,); nan for an empty class.

    Args:
        matrix: images by true class (rows) and predicted class (columns), (K, K).
    """
    return matrix.diag() / matrix.sum(1)


def precision(matrix: Tensor) -> Tensor:
    """Computes the share of right predictions of each class, (K,); nan where there are none.

    Args:
        matrix: as ``recall`` has it.
    """
    return matrix.diag() / matrix.sum(0)


def balanced_accuracy(matrix: Tensor) -> Tensor:
    """Averages recall over the classes that have images (Brodersen et al., ICPR 2010).

    Args:
        matrix: as ``recall`` has it.
    """
    return recall(matrix).nanmean()


def macro_f1(matrix: Tensor) -> Tensor:
    """Averages F1, the harmonic mean of precision and recall, over classes.

    Classes that neither have images nor are predicted do not count, as in scikit-learn's f1_score.

    Args:
        matrix: as ``recall`` has it.
    """
    f1 = 2 * matrix.diag() / (matrix.sum(0) + matrix.sum(1))
    return f1.nanmean()


def weights_of(given: str | list[float] | None, data: Any) -> Tensor | None:
    """Computes the weight of each class in the loss.

    Args:
        given: a number a class; ``balanced``, by which every class counts for as much in all, and
            an image for 1 on average: images / (classes · images of the class) (King & Zeng 2001).
        data: the data module, which ``balanced`` asks for the images of each class.

    Returns:
        (K,), or None where nothing is given.

    Raises:
        UserError: a number is missing or negative, or the data do not know their classes.
    """
    if given is None:
        return None
    if given == "balanced":
        if not hasattr(data, "class_counts"):
            raise UserError(
                "model.class_weights balanced needs a data module that counts its classes "
                "(class_counts): give a list of numbers"
            )
        counts: Tensor = data.used.class_counts() if hasattr(data, "used") else data.class_counts()
        return counts.sum() / (len(counts) * counts.clamp(min=1))
    return torch.tensor(given)


def check_class_weights(given: str | list[float] | None) -> None:
    """Refuses values that cannot be class weights, whatever the data.

    Raises:
        UserError: it is another word, or numbers that are negative or all 0.
    """
    if given is None or given == "balanced":
        return
    if isinstance(given, str) or not any(given) or not all(0 <= w < float("inf") for w in given):
        raise UserError(
            f"model.class_weights is {shown(given)}: give balanced, or a number from 0 up for each "
            "class, not all 0"
        )
