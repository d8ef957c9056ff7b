"""Calibration and selective prediction of made logits, in numbers, next to torch-uncertainty's.

torch-uncertainty 0.13 or later has to be installed. Exit code 1 where a number differs by 1e-4. The
temperatures are printed only: torch-uncertainty's search ends a little before the minimum, which
the NLL at either shows.
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch_uncertainty.metrics.classification import (
    AURC,
    AdaptiveCalibrationError,
    BrierScore,
    CalibrationError,
    CategoricalNLL,
    ClasswiseCalibrationError,
    CovAt5Risk,
)
from torch_uncertainty.post_processing import TemperatureScaler

from zoo.diagnostics import calibration
from zoo.diagnostics.calibrate import fit_scaling
from zoo.diagnostics.selective import aurc, coverage_at_risk

IMAGES, CLASSES, BINS = 10_000, 10, 15


def main() -> int:
    torch.manual_seed(0)
    logits = 6 * torch.randn(IMAGES, CLASSES)
    labels = (0.6 * logits).softmax(1).multinomial(1)[:, 0]  # the logits are overconfident
    scaler = TemperatureScaler(nn.Identity(), max_iter=1000)  # by default it ends before it settles
    scaler.fit(DataLoader(TensorDataset(logits, labels), batch_size=IMAGES), progress=False)
    fitted = fit_scaling(logits, labels)

    probabilities = logits.softmax(1)
    confidence, predicted = probabilities.max(1)
    right = predicted == labels
    temperatures = fitted.temperature, float(scaler.temperature[0].detach())
    at_either = [calibration.nll((logits / each).softmax(1), labels) for each in temperatures]
    ours = {
        "NLL, calibrated": at_either[0],
        "NLL": calibration.nll(probabilities, labels),
        "Brier": calibration.brier(probabilities, labels),
        "ECE, equal width": calibration.ece(probabilities, labels, BINS),
        "ECE, equal mass": calibration.ece(probabilities, labels, BINS, equal_mass=True),
        "classwise ECE": calibration.classwise_ece(probabilities, labels, BINS),
        "AURC": aurc(confidence, right),
        "coverage at 5 % risk": coverage_at_risk(confidence, right, 0.05),
    }
    metrics = {
        "NLL": CategoricalNLL(),
        "Brier": BrierScore(CLASSES),
        "ECE, equal width": CalibrationError("multiclass", num_classes=CLASSES, num_bins=BINS),
        "ECE, equal mass": AdaptiveCalibrationError(
            "multiclass", num_classes=CLASSES, num_bins=BINS
        ),
        "classwise ECE": ClasswiseCalibrationError(CLASSES, num_bins=BINS),
        "AURC": AURC(),
        "coverage at 5 % risk": CovAt5Risk(),
    }
    theirs = {"NLL, calibrated": at_either[1]}
    for name, metric in metrics.items():
        metric.update(probabilities, labels)
        theirs[name] = float(metric.compute())

    print(f"{IMAGES} made images of {CLASSES} classes, {BINS} bins")
    print(f"{'':22} {'zoo':>10} {'torch-uncertainty':>18}")
    print(f"{'temperature':22} {temperatures[0]:10.6f} {temperatures[1]:18.6f}")
    for name, value in ours.items():
        print(f"{name:22} {value:10.6f} {theirs[name]:18.6f}")
    return int(any(abs(value - theirs[name]) > 1e-4 for name, value in ours.items()))


if __name__ == "__main__":
    sys.exit(main())
