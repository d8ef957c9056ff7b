"""Tasks: how a network learns, whatever its architecture."""

from zoo.tasks.averaging import EMA
from zoo.tasks.base import Task
from zoo.tasks.image_classifier import ImageClassifier

__all__ = ["EMA", "ImageClassifier", "Task"]
