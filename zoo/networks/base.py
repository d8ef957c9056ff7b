"""What every network is: a module that remembers its arguments and says what is wrong in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from torch import Tensor, nn

from zoo.core.renamed import renamed_network
from zoo.core.text import counted
from zoo.networks.checkpointing import recomputed
from zoo.networks.initializers import init_he

CONFIG = "config.json"  # the name that the hub gives it
# In a ``group_matcher``: belongs to the block before it, as timm's ``group_parameters`` reads it.
JOINS_PREVIOUS = (99999,)


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

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Any:
        """Reads the zoo's ``config.json`` as well as Hugging Face's, whose keys are arguments."""
        config = _read_config(model_id, options)
        if isinstance(recorded := config.get("network"), dict):
            recorded = renamed_network(recorded)
            if recorded["name"] != cls.__name__:
                raise ValueError(f"{model_id} holds a {recorded['name']}, not a {cls.__name__}")
            options = {**recorded["args"], **options}
        return super()._from_pretrained(model_id=model_id, **options)


def _read_config(model_id: str, options: dict[str, Any]) -> dict[str, Any]:
    """``config.json`` of a folder, or of a repository of the hub."""
    file = Path(model_id) / CONFIG
    if not file.parent.is_dir():
        where = ("revision", "cache_dir", "force_download", "token", "local_files_only")
        file = Path(hf_hub_download(model_id, CONFIG, **{key: options[key] for key in where}))
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


class ImageNetwork(Network):
    """A network of images with timm's contract for feature extraction and fine-tuning.

    A subclass gives ``num_features``, ``num_stages``, ``forward_stages``, ``forward_head`` and
    ``group_matcher``, and runs its blocks by ``run`` or ``run_stage``, so that they can be
    checkpointed.
    """

    num_classes: int
    num_features: int
    num_stages: int  # how many maps ``forward_stages`` yields
    classifier_name = "fc"  # the attribute that holds the last layer, as the reference names it
    global_pools: tuple[str, ...] = ("avg",)  # timm's names of the poolings that it can have
    ends_in_norm = False  # whether ``forward_end`` is a norm that the last stage's maps may have
    grad_checkpointing = False

    @property
    def head_hidden_size(self) -> int:
        """Size of what the last layer takes."""
        return self.num_features

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yields the output of the stem, where it counts as a stage, and of each stage in order."""
        raise NotImplementedError

    def forward_end(self, x: Tensor) -> Tensor:
        """The last stage's output → features; the identity unless an architecture has more."""
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → features, before pooling and the last layer."""
        for stage_output in self.forward_stages(x):  # noqa: B007
            pass
        return self.forward_end(stage_output)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Features → logits (B, K), or what the last layer takes if ``pre_logits``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), normalized → logits (B, K), or of every pixel (B, K, H, W)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]]:
        """Runs the network and returns the outputs of its stages, as timm's networks do.

        Args:
            x: images (B, C, H, W).
            indices: which stages, in ascending order: all if None, the last n if an int; negative
                ones count from the last.
            norm: applies the final norm to the last stage's output, in networks that end in one.
            stop_early: computes nothing after the last stage asked for.
            output_fmt: ``NCHW``.
            intermediates_only: returns the list alone.

        Returns:
            The features and the list of outputs (B, C', H', W'). The features are those of
            ``forward_features``, or where it stopped early the last output.

        Raises:
            ValueError: there is no such stage, or another format.
        """
        check_choice("output_fmt", output_fmt, "NCHW")
        x, taken, ended = self.take_stages(x, indices, stop_early)
        norm = norm and self.ends_in_norm
        if ended and (norm or not intermediates_only):
            features = self.forward_end(x)
            if norm and taken[-1] is x:
                taken[-1] = features
            x = features
        return taken if intermediates_only else (x, taken)

    def take_stages(
        self, x: Tensor, indices: int | Sequence[int] | None, stop_early: bool
    ) -> tuple[Tensor, list[Tensor], bool]:
        """The last stage's output, those of ``indices``, and whether all stages have run."""
        wanted = self._stage_numbers(indices)
        taken = []
        number = -1
        for number, x in enumerate(self.forward_stages(x)):  # noqa: B020
            if number in wanted:
                taken.append(x)
            if stop_early and number == max(wanted):
                break
        return x, taken, number == self.num_stages - 1

    def _stage_numbers(self, indices: int | Sequence[int] | None) -> set[int]:
        count = self.num_stages
        if indices is None:
            return set(range(count))
        if isinstance(indices, int):
            wanted = set(range(count - indices, count))
        else:
            wanted = {index + count if index < 0 else index for index in indices}
        if not wanted or not wanted <= set(range(count)):
            raise ValueError(
                f"indices is {indices}: {type(self).__name__} has {counted(count, 'stage')}"
            )
        return wanted

    def get_classifier(self) -> nn.Module:
        """Returns the last layer."""
        return self.get_submodule(self.classifier_name)

    def make_classifier(self, num_classes: int) -> nn.Module:
        """Makes a fresh last layer; 0 classes make none."""
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        init_he(head)
        return head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the last layer by a fresh one for ``num_classes``; 0 removes it.

        Args:
            num_classes: size of the output.
            global_pool: another pooling, where the network has a choice; None keeps it.

        Raises:
            ValueError: a pooling that the network cannot have, or fewer than 0 classes.
        """
        check_sizes(num_classes)
        if global_pool is not None:
            self.set_global_pool(global_pool)
        # The mode too: a layer may drop weights in training.
        head = self.make_classifier(num_classes).train(self.training)
        setattr(self, self.classifier_name, head.to(next(self.parameters())))
        self.num_classes = self.config["num_classes"] = num_classes

    def set_global_pool(self, global_pool: str) -> None:
        """Changes the pooling; ValueError for one that the network cannot have."""
        if global_pool not in self.global_pools:
            known = " or ".join(map(repr, self.global_pools)) or "nothing but None"
            raise ValueError(f"global_pool is {global_pool!r}: {type(self).__name__} takes {known}")

    def no_weight_decay(self) -> set[str]:
        """Lists the parameters that no optimizer should decay, in addition to norms and biases."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Gives regular expressions that order parameters from the stem up, for timm's layer decay.

        Args:
            coarse: a group for each stage instead of each block.
        """
        raise NotImplementedError

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keeps only the blocks' inputs for the gradient and computes the rest again.

        Numbers, gradients and BatchNorm's statistics stay the same; a step needs less memory and
        about a third more time.
        """
        self.grad_checkpointing = enable

    def run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        """Runs one block, checkpointed after ``set_grad_checkpointing``."""
        return recomputed(block, *inputs) if self.grad_checkpointing else block(*inputs)

    def run_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        """Runs a stage, each of its blocks checkpointed after ``set_grad_checkpointing``."""
        if not self.grad_checkpointing:
            return stage(x)
        for block in stage.children():
            x = recomputed(block, x)
        return x


def _listed(value: Any) -> Any:
    """Lists for tuples, however deep (defaults): JSON knows lists only."""
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def check_choice(name: str, value: str, *choices: str) -> None:
    """Raises ValueError for a ``value`` that is none of the choices."""
    if value not in choices:
        *most, last = choices
        listed = f"{', '.join(most)} or {last}" if most else last
        raise ValueError(f"{name} is {value!r}: choose {listed}")


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


def classifier_name(network: nn.Module) -> str | None:
    """Finds the name of the module that ``get_classifier()`` returns; None where it has none.

    Other zoos' networks without that method are taken to call it ``fc``, ``classifier`` or
    ``head``.
    """
    if get_classifier := getattr(network, "get_classifier", None):
        classifier = get_classifier()
        return next((name for name, m in network.named_modules() if name and m is classifier), None)
    for name in ("fc", "classifier", "head"):
        if isinstance(getattr(network, name, None), nn.Module):
            return name
    return None
