"""Independently trained networks with dropout on few digits, for claims on their predictions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.data.digits import Digits
from zoo.networks.convnet import ConvNet
from zoo.study.claims.base import Form
from zoo.study.claims.fits import fit_once
from zoo.study.fitting import build

# 300 images to train on, so that errors remain to be told from the rest.
HELD_OUT = 1137
MEMBERS = 5


@dataclass(frozen=True)
class Held:
    """Images that no member was trained on, normalized (N, 1, 8, 8), and their labels (N,)."""

    images: Tensor
    labels: Tensor


def few_digits() -> Digits:
    return Digits(32, validation_size=HELD_OUT, shift=0)


def held_out() -> Held:
    data = few_digits()
    batches = list(data.plain("validation"))
    images = torch.cat([images for images, _ in batches])
    return Held(data.normalize(images), torch.cat([labels for _, labels in batches]))


def train_members(form: Form, drop_rate: float, count: int) -> list[nn.Module]:
    """Members of other seeds each, with dropout before the fully connected layers."""
    epochs = 15 if form.quick else 40
    members = []
    for seed in range(count):
        network = build(seed, ConvNet, batch_norm=True, drop_rate=drop_rate)
        members.append(fit_once(network, few_digits(), epochs=epochs, seed=seed).network)
    return members


def groups(members: list[nn.Module], seeds: int) -> list[list[nn.Module]]:
    """Ensembles that share no member, one for each seed."""
    return [members[seed * MEMBERS : (seed + 1) * MEMBERS] for seed in range(seeds)]
