"""Tasks: how a network learns, whatever its architecture."""

from zoo.tasks.averaging import EMA
from zoo.tasks.base import Task
from zoo.tasks.gan import GAN
from zoo.tasks.image_classifier import ImageClassifier
from zoo.tasks.language_model import LanguageModel
from zoo.tasks.segmenter import Segmenter

__all__ = ["EMA", "GAN", "ImageClassifier", "LanguageModel", "Segmenter", "Task"]
