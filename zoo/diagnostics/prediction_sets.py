"""Split conformal prediction: sets of classes that hold the truth as often as asked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from zoo.core.text import counted
from zoo.diagnostics.calibrate import Calibration
from zoo.diagnostics.forward import Forward
from zoo.diagnostics.held_out import labeled_logits
from zoo.errors import UserError

Method = Literal["aps", "lac"]


@dataclass(frozen=True)
class PredictionSets:
    """Gives the classes that logits leave possible; ``threshold`` is that of their scores."""

    method: Method
    coverage: float
    threshold: float
    calibration: Calibration | None = None

    def __call__(self, logits: Tensor, seed: int = 0) -> Tensor:
        """Chooses the classes of each row.

        Args:
            logits: (B, K).
            seed: of APS, which decides by chance whether the last class belongs to a set.

        Returns:
            bool (B, K), True for the classes of the set. Where the coverage asked for is near or
            below the accuracy, some sets are empty: full ones would hold the truth more often.
        """
        return _scores(self.method, _probabilities(logits, self.calibration), seed) <= (
            self.threshold
        )


def prediction_sets(
    model: nn.Module,
    loader: Iterable[Any],
    coverage: float = 0.95,
    *,
    method: Method = "aps",
    calibration: Calibration | None = None,
    forward: Forward | None = None,
) -> PredictionSets:
    """Finds the threshold of prediction sets that contain the true class with a given probability.

    The coverage holds on average over images of the held-out data's distribution, not for each
    class, and not on out-of-distribution images.

    Args:
        model: any classifier that gives logits (B, K); it stays untouched.
        loader: held-out (inputs, labels).
        coverage: share of the images whose set contains the true class, between 0 and 1.
        method: ``aps``, larger sets for harder images (Romano et al., NeurIPS 2020), or ``lac``,
            the smallest sets on average (Sadinle et al., JASA 2019).
        calibration: the result of ``zoo.calibrate``; by default the softmax of the logits.
        forward: runs the model on a batch, where the batches are of another form.

    Raises:
        UserError: there are too few images for that coverage, or the data are not a classifier's.
    """
    if method not in get_args(Method):
        raise UserError(
            f"prediction_sets: method is {method!r}: choose {' or '.join(get_args(Method))}"
        )
    if not 0 < coverage < 1:
        raise UserError(f"prediction_sets: coverage is {coverage}: give a number between 0 and 1")
    logits, labels = labeled_logits("prediction_sets", model, loader, forward)
    return fit_sets(logits, labels, coverage, method, calibration)


def fit_sets(
    logits: Tensor,
    labels: Tensor,
    coverage: float,
    method: Method = "aps",
    calibration: Calibration | None = None,
    seed: int = 0,
) -> PredictionSets:
    """Finds the threshold by logits (N, K) and labels (N,)."""
    # The 1 is the image to come: it is as likely at every rank among the held-out ones.
    rank = math.ceil((len(labels) + 1) * coverage)
    if rank > len(labels):
        images = counted(len(labels), "held-out image is", "held-out images are")
        raise UserError(
            f"prediction_sets: {images} too few for a coverage of {coverage}: give at least "
            f"{math.ceil(round(coverage / (1 - coverage), 6))}"
        )
    scores = _scores(method, _probabilities(logits, calibration), seed)
    own = scores.gather(1, labels[:, None])[:, 0]
    return PredictionSets(method, coverage, float(own.kthvalue(rank).values), calibration)


def _probabilities(logits: Tensor, calibration: Calibration | None) -> Tensor:
    logits = logits.double()
    return logits.softmax(1) if calibration is None else calibration(logits)


def _scores(method: Method, probabilities: Tensor, seed: int) -> Tensor:
    """How badly each class conforms (B, K): APS sums up what is likelier, and a part of its own."""
    if method == "lac":
        return 1 - probabilities
    ranked, order = probabilities.sort(1, descending=True)
    generator = torch.Generator().manual_seed(seed)
    part = torch.rand(len(ranked), 1, generator=generator, dtype=torch.float64)
    before = ranked.cumsum(1) - ranked
    scores = before + part.to(ranked.device) * ranked
    return torch.empty_like(scores).scatter_(1, order, scores)
