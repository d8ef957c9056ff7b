"""What every network is: a module that remembers its arguments and says what is wrong in them."""

from __future__ import annotations

from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from zoo.networks.initializers import init_he


class Network(nn.Module, PyTorchModelHubMixin):
    """A plain PyTorch module that remembers the arguments it was built with.

    Constructor arguments are JSON values, so that weights plus ``config`` are the whole model:
    ``type(net)(**net.config)`` is the same network with fresh weights. ``save_pretrained``,
    ``from_pretrained`` and ``push_to_hub`` come with it.
    """

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments by name, defaults included; JSON values only."""
        config = self._hub_mixin_config
        if not isinstance(config, dict):
            raise TypeError(f"{type(self).__name__} takes arguments that are not JSON values")
        for name, value in config.items():
            config[name] = _listed(value)
        return config


class ImageNetwork(Network):
    """A network of images with a last layer that can be renewed, as timm's networks have it.

    A subclass has ``forward_features(x)`` and ``forward_head(features, pre_logits)``: the split is
    where fine-tuning, feature extraction and MC dropout take hold.
    """

    num_classes: int
    num_features: int
    classifier_name = "fc"  # the attribute that holds the last layer, as the reference names it

    def get_classifier(self) -> nn.Module:
        """The last layer, as timm names it."""
        return self.get_submodule(self.classifier_name)

    def make_classifier(self, num_classes: int) -> nn.Module:
        """A fresh last layer; 0 classes make none."""
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        init_he(head)
        return head

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the last layer by a fresh one for ``num_classes``; 0 removes it."""
        device = next(self.parameters()).device
        setattr(self, self.classifier_name, self.make_classifier(num_classes).to(device))
        self.num_classes = self.config["num_classes"] = num_classes


def _listed(value: Any) -> Any:
    """Lists for tuples, however deep (defaults): JSON knows lists only."""
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def check_choice(name: str, value: str, *choices: str) -> None:
    """Raises ValueError for a ``value`` that is none of the choices."""
    if value not in choices:
        *most, last = choices
        raise ValueError(f"{name} is {value!r}: choose {', '.join(most)} or {last}")


def check_sizes(num_classes: int = 0, **sizes: int) -> None:
    """Raises ValueError for fewer than 0 classes, or another size below 1, by its name."""
    if num_classes < 0:
        raise ValueError(f"num_classes is {num_classes}: it must be at least 0")
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}: it must be at least 1")


def check_rates(**rates: float) -> None:
    """Raises ValueError for a drop rate outside [0, 1), by its name."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"{name} is {rate}: it must be at least 0 and below 1")
