"""Monte-Carlo dropout and deep ensembles: what a model does not know, on any model.

Dropout stays on at prediction, and the spread of the predictions tells the uncertainty (Gal &
Ghahramani, ICML 2016, section 4). Three things go wrong elsewhere and are taken care of here:
dropout without a module (functional, attention, recurrent) is reached too; BatchNorm goes on
using its running statistics and moves none of them; and what comes before the first active dropout
is computed once, not once a sample. What comes after it is computed for many samples at once.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from zoo.core.text import first_line
from zoo.diagnostics.forward import Forward, arguments, call, logits_in
from zoo.diagnostics.moments import Normalizations
from zoo.diagnostics.predictions import Outputs, Predictions, Task, Uncertainty, join
from zoo.diagnostics.replay import Recording, agree
from zoo.diagnostics.trace.graph import DropoutCall, Node, Trace
from zoo.diagnostics.trace.operations import tensors_in
from zoo.diagnostics.trace.recorder import Recorder, record
from zoo.diagnostics.trace.snapshot import (
    Snapshot,
    eagerly,
    paths,
    set_mode,
    to_model,
    unseen_modules,
    untouched,
)
from zoo.errors import UserError

__all__ = ["Uncertainty", "ensemble", "is_sampled", "mc_dropout", "single"]

CHUNK_BYTES = 2**30  # activations kept while a chunk of the batch is sampled
FIRST_ROWS = 32  # of the first chunk, by which the size of the others is chosen
# The kind of device on which like networks of an ensemble run at once. On a CPU it does not pay:
# one convolution of several weights is a grouped one there (tests/benchmarks/mc_dropout.py).
STACKS = "cuda"


def mc_dropout(
    model: nn.Module,
    x: Any,
    samples: int = 30,
    *,
    task: Task | None = None,
    outputs: Outputs | None = None,
    forward: Forward | None = None,
    seed: int = 0,
    drop_path: bool = False,
    return_samples: bool = False,
    batch_size: int | None = None,
) -> Uncertainty:
    """Predicts with dropout on, ``samples`` times; the model and the random state stay untouched.

    Every dropout that ``zoo.audit`` sees is active, whichever module or function computes it.
    BatchNorm normalizes by its running statistics. Operations before the first active dropout run
    once. The others run for many samples at once if two samples show that this equals a loop; the
    distribution is that of a loop, and on one chunk the numbers are too.

    Args:
        model: any eager module; its output, the first tensor of it or its ``logits`` are sampled.
        x: a tensor (B, …), a tuple (positional) or a mapping (keywords) of such, or what
            ``forward`` takes; tensors whose first dimension is B are taken for rows of the batch.
        samples: S, the number of predictions.
        task: ``multiclass`` (B, K), ``multilabel`` (B, K) or (B,), ``segmentation`` (B, C, H, W),
            ``language`` (B, T, V) or ``regression`` (any shape). By default (B, K) is taken for
            multiclass, K > 1; of other shapes it must be given.
        outputs: ``logits``, ``probabilities`` or ``values`` (of a regression). By default logits,
            unless the model ends in a softmax or sigmoid.
        forward: takes ``x``, or rows of it, and runs the model, where inputs are of another form.
        seed: seed of the masks.
        drop_path: whether stochastic depth is sampled too.
        return_samples: whether to return every sample.
        batch_size: rows per forward; by default as many as fit into a gigabyte of activations.

    Raises:
        UserError: the model has no dropout that training would use, no sample varies, part of it
            cannot be seen, it does not run in training mode, or the kind of its output is unknown.
    """
    if samples < 1:
        raise UserError(f"samples is {samples}: it must be at least 1")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: it must be at least 1")
    if unseen := unseen_modules(model):
        raise UserError(
            f"mc_dropout: {unseen[0] or type(model).__name__} is scripted, traced or exported, so "
            "its dropout cannot be reached: sample the model before that"
        )
    x = dict(x) if isinstance(x, Mapping) else x
    total = _rows(x)
    rows = batch_size or min(total, FIRST_ROWS)
    search = _Search(model, _slice(x, 0, rows), forward, drop_path)
    predictions = Predictions(task, outputs, _classes_of(model))
    parts: list[Uncertainty] = []
    stacked: bool | None = None
    with untouched(model) as snapshot, eagerly(model), torch.inference_mode():
        snapshot.guard(tensors_in(x))
        snapshot.randomness.seed(seed)
        done = 0
        while done < total:
            part = to_model(model, _slice(x, done, done + rows), copy=False)
            if done and search.by_values:  # these rows may take another way
                search = _Search(model, part, forward, drop_path)
            predict = partial(predictions.of, partial(call, model, part, forward))
            drawer = Recording(predict, snapshot.randomness, stacked)
            draws = drawer.draws(samples)
            if not search.sure:
                first = search.watch(snapshot, part, draws)
                if first is None:  # other modules must be switched: from the start
                    snapshot.randomness.seed(seed)
                    continue
                draws = chain([first], draws)
            with _sampling(model, search.switches):
                parts.append(predictions.summarize(draws, return_samples))
            done, stacked = done + rows, drawer.stacked
            if batch_size is None:
                per_row = max(1, drawer.bytes // _rows(part))
                rows = max(1, CHUNK_BYTES // per_row)
    result = join(parts)
    if samples > 1 and not result.variance.any():
        raise UserError(
            f"mc_dropout: no prediction of {type(model).__name__} varies over {samples} samples, "
            "so nothing is measured: its dropout does not reach the output"
        )
    return result


def ensemble(
    models: Sequence[nn.Module],
    x: Any,
    *,
    task: Task | None = None,
    outputs: Outputs | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    return_samples: bool = False,
) -> Uncertainty:
    """Predicts with several independently trained models, in the form of ``mc_dropout``.

    Deep ensembles (Lakshminarayanan et al., NeurIPS 2017, section 2.4) are usually better
    calibrated than MC dropout.

    Args:
        models: each predicts in evaluation mode and comes out untouched.
        x: a tensor (B, …), a tuple (positional), a mapping (keywords), or what ``forward`` takes.
        task: as for ``mc_dropout``.
        outputs: as for ``mc_dropout``.
        forward: takes a model and ``x``, and runs it, where inputs are of another form.
        return_samples: whether to keep each model's predictions, (models, B, K).

    Raises:
        UserError: there is no model, or the kind of their outputs is not known.
    """
    models = list(models)
    if not models:
        raise UserError("ensemble needs at least one model")
    predictions = Predictions(task, outputs, _classes_of(models[0]))

    def one_by_one(x: Any) -> list[Tensor]:
        found = []
        for model in models:
            run = None if forward is None else partial(forward, model)
            with untouched(model), eagerly(model):
                set_mode(model, training=False)
                made = predictions.of(partial(call, model, to_model(model, x), run))
            found.append(made.cpu())
        return found

    with torch.inference_mode():
        place = next(chain(models[0].parameters(), models[0].buffers()), None)
        pays = place is not None and place.device.type == STACKS
        together = pays and forward is None and len(models) > 1 and _alike(models)
        found = (_at_once(models, x, one_by_one) if together else None) or one_by_one(x)
        return join([predictions.summarize(iter(found), return_samples)])


def _alike(models: list[nn.Module]) -> bool:
    """Whether models have the same modules, and tensors of the same shapes on one device."""

    def form(model: nn.Module) -> tuple[Any, ...]:
        tensors = chain(model.named_parameters(), model.named_buffers())
        return (
            tuple((name, type(module)) for name, module in model.named_modules()),
            tuple((name, t.shape, t.dtype, t.device) for name, t in tensors),
        )

    return len({form(model) for model in models}) == 1


def _at_once(
    models: list[nn.Module], x: Any, one_by_one: Callable[[Any], list[Tensor]]
) -> list[Tensor] | None:
    """The outputs of like models by ``torch.func.vmap`` over their stacked weights.

    Returns:
        None where vmap cannot run them, or gives other outputs on the first two rows.
    """
    first = models[0]
    with ExitStack() as contexts:
        for model in models:
            contexts.enter_context(untouched(model))
            contexts.enter_context(eagerly(model))
            set_mode(model, training=False)
        try:
            weights = torch.func.stack_module_state(models)

            def run(x: Any) -> Tensor:
                args, kwargs = arguments(to_model(first, x))

                def member(*state: dict[str, Tensor]) -> Tensor:
                    return logits_in(torch.func.functional_call(first, state, args, kwargs))

                found: Tensor = torch.func.vmap(member)(*weights)
                return found.cpu()

            rows = _slice(x, 0, 2)
            return [*run(x)] if agree(run(rows), torch.stack(one_by_one(rows))) else None
        except (RuntimeError, ValueError):  # vmap cannot run them
            return None


def single(model: nn.Module, x: Any) -> Uncertainty:
    """Predicts once in evaluation mode, in the same form: no variance, no mutual information."""
    return ensemble([model], x)


# -- which modules must be in training mode ----------------------------------------------------


Key = tuple[str, str, str]  # path of the module that makes a call, function, and line of source
Form = tuple[Any, ...]  # of a call: stochastic depth or not, and what its inputs look like
# of a model and a form of calling it: its state, and which modules to switch, all found
_found: WeakKeyDictionary[nn.Module, dict[Form, tuple[int, list[str]]]] = WeakKeyDictionary()
# Forwards that are looked at where random numbers decide between several ways: one taken in a tenth
# of them is missed once in thirty searches.
WAYS = 32


class _Search:
    """Finds the modules whose training mode the dropout of a model obeys.

    First guessed: those whose code makes the calls. Then the first prediction is watched, and for
    a call that stays away the modules are tried, half of them at a time.

    Args:
        model: any eager module.
        x: its example, of which one row is used.
        forward: runs it.
        drop_path: whether stochastic depth counts.
    """

    def __init__(self, model: nn.Module, x: Any, forward: Forward | None, drop_path: bool) -> None:
        self.model, self.forward, self.drop_path = model, forward, drop_path
        self.state = hash(tuple(_state(module) for module in model.modules()))
        self.form = (drop_path, *_form(x))
        self.by_values = False  # whether values of the inputs may choose a way through the model
        state, switches = _found.get(model, {}).get(self.form, (None, []))
        # What a function given for one call does is not known to be what another one does.
        self.sure = state == self.state and forward is None
        self.switches = switches
        if self.sure:
            return
        self.row = x
        self.wanted = self._wanted(x)
        if not self.wanted:
            raise UserError(
                f"{type(model).__name__} has no dropout that is active in training, so there is "
                "nothing to sample"
                + ("" if drop_path else " (drop_path=True samples stochastic depth, if it has any)")
                + "; zoo.ensemble needs none"
            )
        self.switches = list(dict.fromkeys(path for path, _, _ in self.wanted))

    def _wanted(self, x: Any) -> Counter[Key]:
        """The calls that training makes and the output depends on, by one recorded forward."""
        # One row is enough to see which calls there are; some models need two, and those that
        # have the size of the batch written in need all.
        sizes = sorted({1, min(2, _rows(x)), _rows(x)})
        trace = None
        for size in sizes:
            try:
                self.row = _slice(x, 0, size)
                trace = self._record("training")
                break
            except Exception as error:
                if size < sizes[-1]:
                    continue
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"the model does not run in training mode on these inputs "
                    f"({type(error).__name__}: {first_line(error)})"
                ) from error
        assert trace is not None  # or the last size has raised
        if trace.by_values:
            self.by_values, self.row = True, x  # other rows may take another way
            trace = self._record("training")
        found = self._calls(trace)
        if trace.decided:  # what one way leaves out, another may pass
            warnings.warn(
                f"random numbers choose the way through {type(self.model).__name__}: dropout on a "
                "way that is taken in fewer than one of ten forwards may not be sampled, and what "
                "its code leaves out in training is not left out here",
                stacklevel=4,
            )
            for seed in range(1, WAYS):
                found |= self._calls(self._record("training", seed))
            found |= self._calls(self._record("evaluation as training"))
        return found

    def _record(self, mode: str, seed: int = 0) -> Trace:
        inputs, kwargs = _as_arguments(self.row, self.forward)
        return record(
            self.model, inputs, kwargs, mode=mode, run=self.forward, answer=logits_in, seed=seed
        )

    def _calls(self, trace: Trace) -> Counter[Key]:
        """How often each dropout that reaches the output is made."""
        reached = _ancestors(trace.outputs)
        return Counter(
            (node.module, node.dropout.function, node.source)
            for node in trace.dropouts
            if node.dropout and node in reached and is_sampled(node.dropout, self.drop_path)
        )

    def watch(self, snapshot: Snapshot, part: Any, draws: Iterator[Tensor]) -> Tensor | None:
        """Draws the first prediction of a part, and sees to it that all dropout is active.

        Returns:
            The prediction; None where other modules had to be switched.
        """
        recorder = Recorder(self.model, snapshot, assume_training=False)
        recorder.begin(part)
        with recorder.recording(), _sampling(self.model, self.switches):
            result = next(draws)
        trace = recorder.trace("sampling", result)
        by_hand = [n for n in trace.batch_norms if n.batch_norm and n.batch_norm.live]
        if by_hand:
            where = by_hand[0].module or type(self.model).__name__
            raise UserError(
                f"mc_dropout: {where} normalizes by the batch in the mode in which it drops, by "
                "code of its own: write it with F.batch_norm, or dropout as a module"
            )
        missing = self.wanted - self._calls(trace)
        if missing and trace.decided:  # chance may have left them out this time
            missing -= self._seen_somewhere()
        found = [path for key in missing for path in self._modules_for(key)]
        more = list(dict.fromkeys(path for path in found if path not in self.switches))
        self.switches = [*self.switches, *more]
        self.sure = True
        if not self.by_values and self.forward is None:
            _found.setdefault(self.model, {})[self.form] = self.state, self.switches
        return None if more else result

    def _seen_somewhere(self) -> Counter[Key]:
        found: Counter[Key] = Counter()
        for seed in range(WAYS):
            found |= self._calls(self._try(self.switches, seed))
        return found

    def _try(self, switches: list[str], seed: int = 0) -> Trace:
        """One row in the mode of sampling, with some modules switched on."""
        inputs, kwargs = _as_arguments(self.row, self.forward)

        def run(*args: Any, **named: Any) -> Any:
            with _sampling(self.model, switches):
                if self.forward is not None:
                    return self.forward(*args)
                return self.model(*args, **named)

        return record(
            self.model, inputs, kwargs, mode="evaluation", run=run, answer=logits_in, seed=seed
        )

    def _modules_for(self, key: Key) -> list[str]:
        """The fewest modules that make one call active: each step tries half of those left."""
        others = [path for path in paths(self.model).values() if path not in self.switches]
        times = self.wanted[key]

        def active(more: list[str]) -> bool:
            trace = self._try([*self.switches, *more])
            seen = self._calls(trace)
            for seed in range(1, WAYS if trace.decided else 1):
                seen |= self._calls(self._try([*self.switches, *more], seed))
            return seen[key] >= times

        if not active(others):
            path, function, source = key
            raise UserError(
                f"mc_dropout: {function} in {path or type(self.model).__name__}"
                f"{f' at {source}' if source else ''} drops in training and in no mode tried here"
            )
        needed: list[str] = []
        while not active(needed):
            low, high = 0, len(others)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if active(needed + others[:middle]) else (middle, high)
            needed.append(others[low])
            others = others[:low]
        return needed


def _form(x: Any) -> Form:
    """What inputs look like, but for the size of the batch: a forward may go by it."""
    leaves, structure = tree_flatten(x)
    tensors = (
        (tuple(leaf.shape[1:]), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in leaves
    )
    return str(structure), *tensors


def _classes_of(model: nn.Module) -> int | None:
    """The number of classes that a classifier says it has, as timm's and ours do."""
    found = getattr(model, "num_classes", None)
    return found if isinstance(found, int) else None


def _as_arguments(row: Any, forward: Forward | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((row,), {}) if forward is not None else arguments(row)


def _ancestors(nodes: list[Node]) -> set[Node]:
    found: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.inputs)
    return found


def _state(module: nn.Module) -> tuple[Any, ...]:
    """All attributes: numbers and words by value, others by identity."""
    plain = (bool, int, float, str)
    attributes = module.__dict__.items()
    return id(module), *((k, v if isinstance(v, plain) else id(v)) for k, v in attributes)


def is_sampled(dropout: DropoutCall, drop_path: bool = False) -> bool:
    """Whether MC dropout samples what a recorded call drops."""
    return dropout.kind != "selection" and (drop_path or dropout.kind != "path")


@contextmanager
def _sampling(model: nn.Module, switches: list[str]) -> Iterator[None]:
    """Evaluation mode, but for the modules whose mode dropout obeys; BatchNorm as in evaluation."""
    set_mode(model, training=False)
    wanted = set(switches)
    names = paths(model)
    for module in model.modules():
        if names[id(module)] in wanted:
            module.training = True  # of this module alone: train() would reach its children
    with Normalizations(model).watching(by_batch=False):
        yield


# -- batches -----------------------------------------------------------------------------------


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
