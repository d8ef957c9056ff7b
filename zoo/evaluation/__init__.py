"""What is measured of trained weights and stated in their cards: classifiers and generators."""

from zoo.evaluation.generator import frechet, judge, recall, temperatures

__all__ = ["frechet", "judge", "recall", "temperatures"]
