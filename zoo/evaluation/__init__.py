"""What is measured of trained weights and stated in their cards: classifiers and generators."""

from zoo.evaluation.generator import frechet, measure_samples, recall, temperatures

judge = measure_samples  # its name in 0.1

__all__ = ["frechet", "judge", "measure_samples", "recall", "temperatures"]
