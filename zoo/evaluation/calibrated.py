"""What calibration does to a trained classifier, from its logits: fitted, and then measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.core.text import counted
from zoo.diagnostics import calibration as measures
from zoo.diagnostics.calibrate import Calibration, fit_scaling
from zoo.diagnostics.held_out import labeled_logits
from zoo.diagnostics.prediction_sets import PredictionSets, fit_sets
from zoo.diagnostics.selective import (
    Confidence,
    aurc,
    choose_confidence,
    coverage_at_risk,
    risk_coverage,
)
from zoo.errors import UserError
from zoo.evaluation.corruptions import KINDS, STRENGTHS, corrupt

COVERAGES = (0.9, 0.95, 0.99)  # whose thresholds a checkpoint keeps
STATED = 0.95  # the coverage that is measured
RISKS = (0.01, 0.05)
Scores = dict[str, float | None]


@dataclass(frozen=True)
class Fitted:
    """What was fitted on validation images: a temperature, thresholds of sets, a confidence."""

    calibration: Calibration
    aps: dict[float, PredictionSets]  # by coverage
    lac: dict[float, PredictionSets]
    confidence: Confidence

    def as_config(self) -> dict[str, Any]:
        """As ``config.json`` keeps it."""
        return {
            "split": "validation",
            "images": self.calibration.images,
            "temperature": round(self.calibration.temperature or 1.0, 6),
            "confidence_p": self.confidence.p,
            "sets": {
                method: {str(coverage): round(each.threshold, 9) for coverage, each in sets.items()}
                for method, sets in (("aps", self.aps), ("lac", self.lac))
            },
        }

    @classmethod
    def from_config(cls, kept: dict[str, Any]) -> Fitted:
        """From what ``config.json`` keeps."""
        calibration = Calibration((1 / kept["temperature"],), images=kept["images"])
        found: dict[str, dict[float, PredictionSets]] = {
            method: {
                float(coverage): PredictionSets(method, float(coverage), threshold, calibration)
                for coverage, threshold in kept["sets"][method].items()
            }
            for method in ("aps", "lac")
        }
        return cls(calibration, found["aps"], found["lac"], Confidence(kept["confidence_p"]))


def fit(logits: Tensor, labels: Tensor) -> Fitted:
    """Fits all three on held-out logits (N, K) and labels (N,).

    The sets are fitted on what the temperature was fitted on: one number leaves those images as
    good as unseen.
    """
    calibration = fit_scaling(logits, labels)
    # Rounded as it is kept, so that a loaded one gives the very same sets.
    temperature = round(calibration.temperature or 1.0, 6)
    calibration = Calibration((1 / temperature,), images=len(labels))
    possible = [c for c in COVERAGES if round(c / (1 - c), 6) <= len(labels)]
    if STATED not in possible:
        images = counted(len(labels), "validation image is", "validation images are")
        raise UserError(f"{images} too few for sets of {STATED:.0%}")
    return Fitted(
        calibration,
        {c: fit_sets(logits, labels, c, "aps", calibration) for c in possible},
        {c: fit_sets(logits, labels, c, "lac", calibration) for c in possible},
        choose_confidence(logits, labels),
    )


def validation_fit(network: nn.Module, images: Iterable[Any]) -> Fitted:
    """Fits all three on a network's answers to validation images."""
    return fit(*labeled_logits("calibration", network, images))


def before_and_after(logits: Tensor, labels: Tensor, fitted: Fitted) -> dict[str, Scores]:
    """Scores of the probabilities as they are, and calibrated, with an AURC each.

    After calibration the confidence is the chosen one.
    """
    right = logits.argmax(1) == labels
    before = measures.scores(logits.softmax(1), labels)
    after = measures.scores(fitted.calibration(logits), labels)
    before["aurc"] = aurc(Confidence()(logits), right)
    after["aurc"] = aurc(fitted.confidence(logits), right)
    return {"before": before, "after": after}


def confidences(fitted: Fitted, logits: Tensor) -> dict[str, Tensor]:
    """Confidences (N,) by name: maximum probability before and after, and the chosen one."""
    maximum = Confidence()
    found = {
        maximum.name: maximum(logits),
        f"{maximum.name}, calibrated": maximum(fitted.calibration.logits(logits)),
    }
    if fitted.confidence.p is not None:
        found[fitted.confidence.name] = fitted.confidence(logits)
    return found


def selective(logits: Tensor, labels: Tensor, fitted: Fitted) -> dict[str, dict[str, float]]:
    """Computes AURC, and coverage at 1 and 5 % risk, by each confidence."""
    right = logits.argmax(1) == labels
    return {
        name: {
            "aurc": aurc(values, right),
            **{f"coverage_at_{risk:.0%}": coverage_at_risk(values, right, risk) for risk in RISKS},
        }
        for name, values in confidences(fitted, logits).items()
    }


def risk_curves(logits: Tensor, labels: Tensor, fitted: Fitted) -> dict[str, Tensor]:
    """Computes risk over coverage by each confidence."""
    right = logits.argmax(1) == labels
    found = confidences(fitted, logits)
    return {name: risk_coverage(values, right) for name, values in found.items()}


def set_scores(
    logits: Tensor, labels: Tensor, sets: PredictionSets, classes: list[str], seed: int = 0
) -> dict[str, Any]:
    """Computes coverage and mean size of sets, in all and by class, and the share of empty ones."""
    chosen = sets(logits, seed)
    held = chosen.gather(1, labels[:, None])[:, 0].double()
    size = chosen.sum(1).double()
    by_class = {}
    for index, name in enumerate(classes):
        of = labels == index
        if of.any():
            by_class[name] = {"coverage": float(held[of].mean()), "size": float(size[of].mean())}
    return {
        "coverage": float(held.mean()),
        "size": float(size.mean()),
        "empty": float((size == 0).double().mean()),
        "by_class": by_class,
    }


def ood_scores(known: Tensor, unknown: Tensor, fitted: Fitted) -> dict[str, float | None]:
    """Computes the AUROC of OOD detection by entropy, maximum logit and energy.

    The energy is minus the log-sum-exp of the logits (Liu et al., NeurIPS 2020), at temperature 1;
    of the entropy there is a calibrated one.
    """
    both = torch.cat([known, unknown])
    is_ood = torch.arange(len(both)) >= len(known)
    found = {
        "entropy": measures.entropy(both.softmax(1)),
        "entropy, calibrated": measures.entropy(fitted.calibration(both)),
        "maximum logit": -both.amax(1),
        "energy": -both.logsumexp(1),
    }
    return {name: measures.auroc(values, is_ood) for name, values in found.items()}


def corrupted(
    network: nn.Module, images: Any, fitted: Fitted, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Measures a network on corrupted images, kind by kind and strength by strength.

    Args:
        network: gives logits.
        images: ``zoo.evaluation.classifier.Images``.
        fitted: on validation images as they are.
        seed: of noise and directions.

    Returns:
        One row for the images as they are (kind ``none``, strength 0), and one for each kind and
        strength.
    """
    for kind, strengths in [("none", (0,)), *((kind, STRENGTHS) for kind in KINDS)]:
        for strength in strengths:
            batches = (
                # A seed for each batch: the same noise on all of them would be one draw.
                (images.data.normalize(corrupt(pixels, kind, strength, seed + number)), labels)
                for number, (pixels, labels) in enumerate(images.plain())
            )
            logits, labels = labeled_logits("uncertainty", network, batches)
            sets = fitted.aps[STATED](logits)
            scores = before_and_after(logits, labels, fitted)
            yield {
                "kind": kind,
                "strength": strength,
                "accuracy": scores["before"]["accuracy"],
                "ece_before": scores["before"]["ece"],
                "ece_after": scores["after"]["ece"],
                "nll_before": scores["before"]["nll"],
                "nll_after": scores["after"]["nll"],
                "set_coverage": float(sets.gather(1, labels[:, None]).double().mean()),
                "set_size": float(sets.sum(1).double().mean()),
            }
