"""What several predictions of one batch say together, by what the model's task is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from zoo.diagnostics.calibration import entropy
from zoo.diagnostics.forward import logits_in
from zoo.diagnostics.trace.operations import PASS_THROUGH, base_name, plain_name, tensors_in
from zoo.errors import UserError

Task = Literal["multiclass", "multilabel", "regression", "segmentation", "language"]
Outputs = Literal["logits", "probabilities", "values"]

# task → shapes of its outputs, for messages
_SHAPES = {
    "multiclass": "(B, K), K > 1",
    "multilabel": "(B, K), (B, 1) or (B,)",
    "segmentation": "(B, C, H, W), C > 1",
    "language": "(B, T, V), V > 1",
}


@dataclass(frozen=True)
class Uncertainty:
    """What S predictions of a batch say, in probabilities and nats.

    ``mean`` (B, K) is the predictive distribution, ``variance`` (B, K) that of the probabilities
    over the samples (divided by S), ``entropy`` (B,) the mean's, ``expected_entropy`` (B,) the
    samples' own on average, and ``mutual_information`` (B,) their difference: the part that more
    data could take away (Houlsby et al. 2011, section 2). ``samples`` (S, B, K) on request.

    Segmentation and language keep their positions: (B, C, H, W) and (B, H, W), (B, T, V) and
    (B, T). Of several labels each has its own entropy, (B, K). Of a regression ``mean`` and
    ``variance`` are those of the values, and the entropies, which it has not, are NaN.
    """

    mean: Tensor
    variance: Tensor
    entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    samples: Tensor | None = None


class Predictions:
    """Turns a model's outputs into predictions, and several of them into what they say together.

    Args:
        task: what the model does; by default inferred from the first output.
        outputs: what it gives; by default found from its last layer.
        classes: how many the model says it has, if it does.

    Raises:
        UserError: unknown or contradictory, or it cannot be found.
    """

    def __init__(
        self, task: Task | None, outputs: Outputs | None, classes: int | None = None
    ) -> None:
        if task is not None and task not in get_args(Task):
            raise UserError(f"task is {task!r}: choose {', '.join(get_args(Task))}")
        if outputs is not None and outputs not in get_args(Outputs):
            raise UserError(f"outputs is {outputs!r}: choose {', '.join(get_args(Outputs))}")
        if task is None and outputs == "values":
            task = "regression"
        if task == "regression" and outputs not in (None, "values"):
            raise UserError(f"a regression gives values, not {outputs}")
        if task not in (None, "regression") and outputs == "values":
            raise UserError(f"{task} gives logits or probabilities, not values")
        self.task, self.outputs, self.known_classes = task, outputs, classes
        self.found = False
        self.supposed = False  # that outputs are logits

    def of(self, forward: Callable[[], Any]) -> Tensor:
        """Runs a forward and gives what counts of its output."""
        if self.found:
            return logits_in(forward())
        ending = _Ending()
        with ending:
            result = logits_in(forward())
        self._tell(result, ending.of(result))
        return result

    def _tell(self, output: Tensor, ending: str | None) -> None:
        shape = list(output.shape)
        task, outputs = self.task, self.outputs
        if task is None and ending == "sigmoid":
            raise UserError(
                "the model ends in a sigmoid: give task='multilabel', or task='regression'"
            )
        if task is None and output.ndim == 2 and shape[1] > 1:
            if shape[1] == 2 and outputs is None and ending is None and self.known_classes != 2:
                raise UserError(
                    f"the model gives {shape}, which may be logits of two classes or two values: "
                    "give task='multiclass', 'multilabel' or 'regression'"
                )
            task = "multiclass"
        if task is None:
            raise UserError(
                f"the model gives {shape}, which may be several things: logits (B, K), K > 1, are "
                f"taken for classes; else give task= ({', '.join(get_args(Task))})"
            )
        fits = {
            "multiclass": output.ndim == 2 and shape[-1] > 1,
            "multilabel": output.ndim in (1, 2),
            "segmentation": output.ndim == 4 and shape[1] > 1,
            "language": output.ndim == 3 and shape[-1] > 1,
            "regression": output.ndim > 0,
        }
        if not fits[task]:
            raise UserError(f"the model gives {shape}: {task} needs {_SHAPES.get(task, '(B, …)')}")
        if task == "regression":
            outputs = "values"
        else:
            expected = "sigmoid" if task == "multilabel" else "softmax"
            if ending is not None and ending != expected:
                raise UserError(
                    f"the model ends in a {ending}, which {task} does not: give another task"
                )
            if ending is not None and outputs == "logits":
                raise UserError(
                    f"the model ends in a {ending}: it gives outputs='probabilities', not logits"
                )
            self.supposed = outputs is None and ending is None
            outputs = outputs or ("probabilities" if ending else "logits")
        self.task, self.outputs, self.found = task, outputs, True

    @property
    def classes(self) -> int:
        """The dimension of the classes in a stack of samples (S, B, …)."""
        return -1 if self.task == "language" else 2

    def _predicted(self, some: Tensor) -> Tensor:
        some = some.float()
        if self.outputs != "logits":
            return some
        return some.sigmoid() if self.task == "multilabel" else some.softmax(self.classes)

    def _entropy(self, probabilities: Tensor, classes: int) -> Tensor:
        if self.task == "regression":
            return torch.full_like(probabilities, torch.nan)
        if self.task == "multilabel":
            return entropy(torch.stack([probabilities, 1 - probabilities], -1), -1)
        return entropy(probabilities, classes)

    def summarize(self, outputs: Iterator[Tensor], keep: bool) -> Uncertainty:
        """What a batch's outputs say, one after the other.

        Args:
            outputs: what the model gave, once for each sample.
            keep: whether to keep all predictions.
        """
        count = 0
        total: Any = 0.0
        squares: Any = 0.0
        own: Any = 0.0
        kept: list[Tensor] = []
        for some in _in_stacks(outputs):
            # Looked at here and not in ``of``, whose forward may be recorded.
            if self.supposed and count == 0 and _like_probabilities(some):
                raise UserError(
                    "the model's outputs all lie between 0 and 1, as probabilities do and logits "
                    "hardly ever: give outputs='probabilities' or 'logits'"
                )
            predicted = self._predicted(some)  # (S, B, …)
            # Squares of the distance from the first: no cancellation where they hardly differ.
            if count == 0:
                self._check(predicted)
                first = predicted[0]
            off = (predicted - first).double()
            total, squares = total + off.sum(0), squares + off.square().sum(0)
            own = own + self._entropy(predicted, self.classes).double().sum(0)
            count += len(some)
            if keep:
                kept.append(predicted.cpu())
        shift = total / count
        mean = first.double() + shift
        variance = (squares / count - shift.square()).clamp_min(0)
        one = self.classes if self.classes < 0 else self.classes - 1
        predictive, expected = self._entropy(mean, one), own / count
        mutual = (predictive - expected).clamp_min(0)
        mean, variance, predictive, expected, mutual = (
            tensor.float().cpu() for tensor in (mean, variance, predictive, expected, mutual)
        )
        samples = torch.cat(kept) if keep else None
        return Uncertainty(mean, variance, predictive, expected, mutual, samples)

    def _check(self, predicted: Tensor) -> None:
        if self.outputs != "probabilities" or predicted.is_meta:
            return
        inside = bool(((predicted >= -1e-4) & (predicted <= 1 + 1e-4)).all())
        if self.task != "multilabel" and inside:
            total = predicted.sum(self.classes)
            inside = bool((total - 1).abs().max() < 1e-2)
        if not inside:
            raise UserError("outputs='probabilities', but the model gives none: try 'logits'")


def _like_probabilities(output: Tensor, least: int = 8) -> bool:
    """Whether numbers, if there are enough to say so, all lie between 0 and 1."""
    if output.is_meta or output.numel() < least:
        return False
    return bool(((output >= 0) & (output <= 1)).all())


class _Ending(TorchFunctionMode):
    """Sees which tensors are a softmax's or a sigmoid's result, in whatever shape."""

    def __init__(self) -> None:
        super().__init__()
        self.made: MutableMapping[Tensor, str] = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = plain_name(base_name(func))
        if name in ("softmax", "sigmoid") and isinstance(result, Tensor):
            self.made[result] = name
        elif name in PASS_THROUGH and args and isinstance(args[0], Tensor):
            for tensor in tensors_in(result) if args[0] in self.made else ():
                self.made[tensor] = self.made[args[0]]
        return result

    def of(self, output: Tensor) -> str | None:
        """``softmax`` or ``sigmoid``, where an output is what one has made."""
        return self.made.get(output)


def _in_stacks(outputs: Iterator[Tensor], most: int = 2**22) -> Iterator[Tensor]:
    """Several samples (B, …) as one tensor (S, B, …), which is quicker than one by one."""
    waiting, held = list[Tensor](), 0
    for each in outputs:
        waiting.append(each)
        held += each.numel()
        if held > most:
            yield torch.stack(waiting)
            waiting, held = [], 0
    if waiting:
        yield torch.stack(waiting)


def join(parts: list[Uncertainty]) -> Uncertainty:
    """Chunks of a batch as one."""

    # Clones leave inference mode: a user may go on computing with them.
    def cat(name: str, dim: int = 0) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim).clone()

    return Uncertainty(
        cat("mean"),
        cat("variance"),
        cat("entropy"),
        cat("expected_entropy"),
        cat("mutual_information"),
        cat("samples", 1) if parts[0].samples is not None else None,
    )
