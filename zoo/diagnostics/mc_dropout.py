"""Monte-Carlo dropout and deep ensembles: what a classifier does not know, on any model.

Dropout stays on at prediction, and the spread of the predictions tells the uncertainty (Gal &
Ghahramani, ICML 2016, section 4). Three things go wrong elsewhere and are taken care of here:
dropout that is no module (functional, attention, recurrent) is reached too; BatchNorm goes on
using its running statistics and moves none of them; and what comes before the first active dropout
is computed once, not once a sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from zoo.diagnostics.calibration import entropy
from zoo.diagnostics.forward import logits_in
from zoo.diagnostics.replay import Recording
from zoo.diagnostics.trace.graph import DropoutCall
from zoo.diagnostics.trace.operations import tensors_in
from zoo.diagnostics.trace.recorder import active_dropouts
from zoo.diagnostics.trace.snapshot import eagerly, paths, seed_everywhere, to_model, untouched
from zoo.errors import UserError

CHUNK_BYTES = 2**30  # activations kept while a chunk of the batch is sampled
FIRST_ROWS = 32  # of the first chunk, by which the size of the others is chosen


@dataclass(frozen=True)
class Uncertainty:
    """What S predictions of a batch say, in probabilities and nats.

    ``mean`` (B, K) is the predictive distribution, ``variance`` (B, K) that of the probabilities
    over the samples (divided by S), ``entropy`` (B,) the mean's, ``expected_entropy`` (B,) the
    samples' own on average, and ``mutual_information`` (B,) their difference: the part that more
    data could take away (Houlsby et al. 2011, section 2). ``samples`` (S, B, K) on request.
    """

    mean: Tensor
    variance: Tensor
    entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    samples: Tensor | None = None


def mc_dropout(
    model: nn.Module,
    x: Any,
    samples: int = 30,
    *,
    seed: int = 0,
    drop_path: bool = False,
    return_samples: bool = False,
    batch_size: int | None = None,
) -> Uncertainty:
    """Predicts with dropout on, ``samples`` times; the model and the random state stay untouched.

    Every dropout that ``zoo.audit`` sees is active, whatever module or function makes it.
    BatchNorm normalizes by its running statistics. Operations before the first active dropout run
    once; the distribution is that of a plain loop, and on one chunk so are the numbers.

    Args:
        model: any eager module with logits (B, K) out, alone, first in a tuple, or as ``logits``.
        x: the input (B, …), or a tuple or dict of such, as the model takes it; tensors whose first
            dimension is B are taken for rows of the batch.
        samples: S, the number of predictions.
        seed: of the masks.
        drop_path: whether stochastic depth is sampled too.
        return_samples: whether to keep all of them.
        batch_size: rows at a time; by default as many as fit into a gigabyte of activations.

    Raises:
        UserError: the model has no dropout that training would use, or does not run in training
            mode.
    """
    if samples < 1:
        raise UserError(f"samples is {samples}: it must be at least 1")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: it must be at least 1")
    x = dict(x) if isinstance(x, Mapping) else x
    total = _rows(x)
    owners = _owners(model, x, drop_path)
    parts: list[Uncertainty] = []
    with (
        untouched(model) as snapshot,
        eagerly(model),
        torch.inference_mode(),
        _sampling(model, owners),
    ):
        snapshot.guard(tensors_in(x))
        seed_everywhere(seed)
        done, rows = 0, batch_size or min(total, FIRST_ROWS)
        while done < total:
            part = to_model(model, _slice(x, done, done + rows), copy=False)
            drawer = Recording(partial(_predict, model, part))
            parts.append(_summarize(drawer.draws(samples), return_samples))
            done += rows
            if batch_size is None:
                per_row = max(1, drawer.bytes // _rows(part))
                rows = max(1, CHUNK_BYTES // per_row)
    return _join(parts)


def ensemble(models: Sequence[nn.Module], x: Any, *, return_samples: bool = False) -> Uncertainty:
    """The predictions of several independently trained models, as ``mc_dropout`` gives samples.

    Deep ensembles (Lakshminarayanan et al., NeurIPS 2017, section 2.4) are usually the better
    calibrated of the two.

    Args:
        models: with logits (B, K) out; each predicts in evaluation mode and comes out untouched.
        x: the input (B, …).
        return_samples: whether to keep each model's probabilities, (models, B, K).

    Raises:
        UserError: there is no model.
    """
    models = list(models)
    if not models:
        raise UserError("ensemble needs at least one model")
    return _predict_all(models, x, return_samples)


def _predict_all(models: list[nn.Module], x: Any, return_samples: bool = False) -> Uncertainty:
    logits = []
    for model in models:
        with untouched(model), eagerly(model), torch.inference_mode():
            model.eval()
            logits.append(_predict(model, to_model(model, x)).cpu())
    return _join([_summarize(iter(logits), return_samples)])


def single(model: nn.Module, x: Any) -> Uncertainty:
    """One prediction in evaluation mode, in the same form: no variance, no mutual information."""
    return _predict_all([model], x)


# -- which modules must be in training mode ----------------------------------------------------


Calls = list[tuple[str, DropoutCall]]  # path of the module that makes the call, and what it drops
_found: WeakKeyDictionary[nn.Module, tuple[int, Calls]] = WeakKeyDictionary()


def _dropouts(model: nn.Module, x: Any) -> Calls:
    """What training drops, by one recorded forward; remembered as long as the model stays."""
    state = hash(tuple(_state(module) for module in model.modules()))
    if model not in _found or _found[model][0] != state:
        # One row is enough to see which calls there are; some models need two.
        args, kwargs = _arguments(_slice(x, 0, 1))
        try:
            seen = active_dropouts(model, args, kwargs)
        except UserError:
            args, kwargs = _arguments(_slice(x, 0, 2))
            seen = active_dropouts(model, args, kwargs)
        _found[model] = state, [(node.module, node.dropout) for node in seen if node.dropout]
    return _found[model][1]


def _state(module: nn.Module) -> tuple[Any, ...]:
    """All attributes: numbers and words by value, others by identity."""
    plain = (bool, int, float, str)
    attributes = module.__dict__.items()
    return id(module), *((k, v if isinstance(v, plain) else id(v)) for k, v in attributes)


def _owners(model: nn.Module, x: Any, drop_path: bool) -> list[str]:
    wanted = [path for path, seen in _dropouts(model, x) if is_sampled(seen, drop_path)]
    if not wanted:
        raise UserError(
            f"{type(model).__name__} has no dropout that is active in training, so there is "
            "nothing to sample"
            + ("" if drop_path else " (drop_path=True samples stochastic depth, if it has any)")
            + "; zoo.ensemble needs none"
        )
    return list(dict.fromkeys(wanted))


def is_sampled(dropout: DropoutCall, drop_path: bool = False) -> bool:
    """Whether MC dropout samples what a recorded call drops."""
    return dropout.kind != "selection" and (drop_path or dropout.kind != "path")


class _RunningStatistics(TorchFunctionMode):
    """BatchNorm by running statistics, even where one module owns it and a dropout."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.batch_norm and (len(args) > 1 or kwargs.get("running_mean") is not None):
            running = args[1] if len(args) > 1 else kwargs["running_mean"]
            if running is not None:
                if len(args) > 5:
                    args = (*args[:5], False, *args[6:])
                else:
                    kwargs["training"] = False
        return func(*args, **kwargs)


@contextmanager
def _sampling(model: nn.Module, owners: list[str]) -> Iterator[None]:
    """Evaluation mode, but for the modules that make the dropout calls."""
    model.eval()
    wanted = set(owners)
    names = paths(model)
    for module in model.modules():
        if names[id(module)] in wanted:
            module.training = True  # of this module alone: train() would reach its children
    with _RunningStatistics():
        yield


# -- batches and predictions -------------------------------------------------------------------


def _arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(x, dict):
        return (), x
    return (x if isinstance(x, tuple) else (x,)), {}


def _call(model: nn.Module, x: Any) -> Any:
    args, kwargs = _arguments(x)
    return model(*args, **kwargs)


def _predict(model: nn.Module, x: Any) -> Tensor:
    return logits_in(_call(model, x))


def _rows(x: Any) -> int:
    tensor = next((leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)), None)
    if tensor is None or tensor.ndim == 0:
        raise UserError("the input holds no tensor with a batch dimension")
    return len(tensor)


def _slice(x: Any, start: int, stop: int) -> Any:
    rows = _rows(x)

    def cut(leaf: Any) -> Any:
        batched = isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == rows
        return leaf[start:stop] if batched else leaf

    return tree_map(cut, x)


def _summarize(logits: Iterator[Tensor], keep: bool) -> Uncertainty:
    count = 0
    total: Any = 0.0
    squares: Any = 0.0
    own: Any = 0.0
    kept: list[Tensor] = []
    for some in _in_stacks(logits):
        probabilities = some.float().softmax(2)  # (S, B, K)
        # Squares of the distance from the first sample: no cancellation where they hardly differ.
        if count == 0:
            first = probabilities[0]
        off = (probabilities - first).double()
        total, squares = total + off.sum(0), squares + off.square().sum(0)
        own = own + entropy(probabilities, 2).double().sum(0)
        count += len(some)
        if keep:
            kept.append(probabilities.cpu())
    shift = total / count
    mean = first.double() + shift
    variance = (squares / count - shift.square()).clamp_min(0)
    predictive, expected = entropy(mean), own / count
    mutual = (predictive - expected).clamp_min(0)
    mean, variance, predictive, expected, mutual = (
        tensor.float().cpu() for tensor in (mean, variance, predictive, expected, mutual)
    )
    samples = torch.cat(kept) if keep else None
    return Uncertainty(mean, variance, predictive, expected, mutual, samples)


def _in_stacks(logits: Iterator[Tensor], most: int = 2**22) -> Iterator[Tensor]:
    """Several samples (B, K) as one tensor (S, B, K), which is quicker than one by one."""
    waiting: list[Tensor] = []
    for each in logits:
        if each.ndim != 2 or each.shape[1] < 2:
            raise UserError(f"the model gives {list(each.shape)}: logits (B, K), K > 1, are needed")
        waiting.append(each)
        if sum(tensor.numel() for tensor in waiting) > most:
            yield torch.stack(waiting)
            waiting = []
    if waiting:
        yield torch.stack(waiting)


def _join(parts: list[Uncertainty]) -> Uncertainty:
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
