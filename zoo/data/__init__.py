"""Data modules: everything a network is fed, split once, normalized and augmented in batches."""

from zoo.data.base import ImageData
from zoo.data.batches import Batches
from zoo.data.cifar import CIFAR10, CIFAR100
from zoo.data.datasets import Images
from zoo.data.digit_masks import DigitMasks
from zoo.data.digits import Digits
from zoo.data.download import data_folder
from zoo.data.fashion_mnist import FashionMNIST
from zoo.data.image_folder import ImageFolder
from zoo.data.images import LabeledImages, LabelledImages  # noqa: F401 (its name in 0.1)
from zoo.data.shakespeare import PythonTopics, Shakespeare
from zoo.data.text import Text, TextFile

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Batches",
    "DigitMasks",
    "Digits",
    "FashionMNIST",
    "ImageData",
    "ImageFolder",
    "Images",
    "LabeledImages",
    "PythonTopics",
    "Shakespeare",
    "Text",
    "TextFile",
    "data_folder",
]
