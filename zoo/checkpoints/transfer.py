"""Loads weights into a network that may have another head, stem or grid of patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from zoo.checkpoints.rebuild import form
from zoo.core.text import counted, shown
from zoo.errors import UserError
from zoo.networks.base import classifier_name
from zoo.networks.layers import adapt_input


@dataclass
class Transferred:
    """What of some weights went into a network, and what did not."""

    source: str
    loaded: list[str] = field(default_factory=list)  # parameters and buffers, by name
    changed: list[tuple[str, str, str]] = field(default_factory=list)  # name, fate, why

    @property
    def whole(self) -> bool:
        """Whether every tensor was loaded as it is."""
        return not self.changed

    def __str__(self) -> str:
        """A table: a line for all that was loaded, and for what was not a line for each reason."""
        parts = dict.fromkeys(name.split(".")[0] for name in self.loaded)
        total = len(self.loaded) + sum(fate != "not used" for _, fate, _ in self.changed)
        rows = [(", ".join(parts), "loaded", f"{len(self.loaded):,} of {counted(total, 'tensor')}")]
        reasons: dict[tuple[str, str], list[str]] = {}
        for name, fate, why in self.changed:
            reasons.setdefault((fate, why), []).append(name)
        rows += [(_listed(names), fate, why) for (fate, why), names in reasons.items()]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines = [
            f"  {name:<{widths[0]}}  {fate:<{widths[1]}}  {why}".rstrip()
            for name, fate, why in rows
        ]
        return "\n".join([f"weights of {self.source}:", *lines])


def _listed(names: list[str]) -> str:
    if len(names) < 4:
        return ", ".join(names)
    return f"{names[0]}, {names[1]} … {names[-1]} ({len(names)})"


def transfer(
    network: nn.Module, state: Mapping[str, Tensor], source: str, new_head: bool = False
) -> Transferred:
    """Loads weights into a network, in place, as far as they fit.

    The classifier stays as it is where its shape differs; a first convolution is adapted to the
    number of input channels, and learned positions to another grid of patches.

    Args:
        network: whose weights are replaced.
        state: the weights, by parameter names.
        source: where they come from, for messages.
        new_head: keeps the network's classifier although the weights have one of its shape: their
            classes are others.

    Raises:
        UserError: a tensor beyond head, stem and positions is missing or of another shape; nothing
            is changed then.
    """
    ours = network.state_dict()
    head = classifier_name(network)
    stem = next((n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)), None)
    report, fitting = Transferred(source), {}
    for name, mine in ours.items():
        in_head = head is not None and name.startswith(f"{head}.")
        theirs = state.get(name)
        if in_head and (new_head or theirs is None or theirs.shape != mine.shape):
            report.changed.append((name, "new", _why_new(mine, theirs)))
        elif theirs is None:
            if mine.is_floating_point():
                raise UserError(
                    f"{source}: weights do not fit the network: {shown(name)} is missing"
                    f"{_look(ours, state)}"
                )
            report.changed.append((name, "new", "not in the file"))  # BatchNorm's counter
        elif theirs.is_floating_point() == mine.is_floating_point() and theirs.shape == mine.shape:
            fitting[name] = theirs
            report.loaded.append(name)
        elif name == f"{stem}.weight" and _differs_in_channels(mine, theirs):
            fitting[name] = adapt_input(theirs, mine.shape[1])
            why = f"from {theirs.shape[1]} to {mine.shape[1]} input channels"
            report.changed.append((name, "adapted", why))
        elif name == "pos_embed" and (resized := _resized(network, mine, theirs)) is not None:
            fitting[name] = resized
            why = f"from {theirs.shape[1]} to {mine.shape[1]} positions"
            report.changed.append((name, "adapted", why))
        else:
            raise UserError(
                f"{source}: weights do not fit the network: {name} is {form(theirs)} there and "
                f"{form(mine)} in the network"
            )
    report.changed += [
        (name, "not used", "the network has none of this name")
        for name in state
        if name not in ours
    ]
    network.load_state_dict(fitting, strict=False)
    return report


def _why_new(mine: Tensor, theirs: Tensor | None) -> str:
    if theirs is None:
        return "not in the file"
    if theirs.shape == mine.shape:
        return f"the {len(mine)} classes are others"
    return f"{counted(len(mine), 'class', 'classes')}, where there were {len(theirs):,}"


def _look(ours: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """What the names look like, where there are no common ones at all."""
    if set(ours) & set(state) or not state:
        return ""
    return f" (its names are others, such as {shown(next(iter(state)))})"


def _differs_in_channels(mine: Tensor, theirs: Tensor) -> bool:
    return mine.ndim == theirs.ndim == 4 and (
        mine.shape[0] == theirs.shape[0] and mine.shape[2:] == theirs.shape[2:]
    )


def _resized(network: nn.Module, mine: Tensor, theirs: Tensor) -> Tensor | None:
    """Positions (1, T, D) for the network's square grid; None where they cannot be resized."""
    prefix = int(getattr(network, "num_prefix_tokens", 0))
    if mine.ndim != 3 or theirs.ndim != 3 or mine.shape[2] != theirs.shape[2]:
        return None
    sides = [round(max(0, tensor.shape[1] - prefix) ** 0.5) for tensor in (mine, theirs)]
    squares = [side**2 + prefix for side in sides]
    if squares != [mine.shape[1], theirs.shape[1]] or not all(sides):
        return None
    with torch.no_grad():
        return resample_abs_pos_embed(theirs, [sides[0]] * 2, num_prefix_tokens=prefix)
