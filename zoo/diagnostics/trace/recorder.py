"""One recorded forward of any model: the graph on which the other diagnostics stand.

A ``TorchFunctionMode`` sees every torch function that the forward calls, whoever calls it: modules,
functional code, fused attention, recurrent layers, masks made by hand. Each call becomes a ``Node``
with the nodes it reads from, the path of the module whose forward made it, and the line of source.
Tensors are mapped to nodes weakly, so that a recording costs no more memory than a forward.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdRef, WeakTensorKeyDictionary

from zoo.diagnostics.trace.graph import BatchNormCall, DropoutCall, Node, Trace, through
from zoo.diagnostics.trace.operations import (
    DROPOUTS,
    IN_PLACE_OPERATORS,
    NORMS,
    ORDERING,
    OVERWRITE,
    PASS_THROUGH,
    QUIET,
    RANDOM,
    RECURRENT,
    SELECTION,
    SHAPED_LIKE,
    TO_PYTHON,
    argument,
    bind_batch_norm,
    plain_name,
    tensors_in,
    written,
)
from zoo.diagnostics.trace.snapshot import (
    Snapshot,
    begin_training,
    eagerly,
    is_scripted,
    paths,
    seed_everywhere,
    to_model,
    untouched,
)
from zoo.errors import UserError

_TORCH = str(Path(torch.__file__).parent) + os.sep


# -- leaving a model as it was -------------------------------------------------------------------


# -- recording -------------------------------------------------------------------------------------


def record(
    model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any] | None = None, *, mode: str
) -> Trace:
    """Runs one forward and records it; the model and the random state come out untouched.

    Args:
        model: any eager module.
        inputs: the forward's positional arguments; tensors go where the model is.
        kwargs: the forward's keyword arguments.
        mode: ``training``; ``as it is``, the modes left alone; ``evaluation``; or ``evaluation as
            training``: dropout that is told to be off and BatchNorm with running statistics count
            as they would in training.

    Raises:
        Exception: whatever the model's forward raises.
    """
    inputs, kwargs = to_model(model, (inputs, kwargs or {}))
    with untouched(model) as snapshot, eagerly(model), torch.no_grad():
        if mode == "training":
            begin_training(model)
        elif mode != "as it is":
            model.eval()
        seed_everywhere(0)
        if any(torch.nn.parameter.is_lazy(p) for p in snapshot.parameters.values()):
            raise UserError(
                "a lazy parameter has no shape yet: run the model once, then it can be recorded"
            )
        recorder = _Recorder(model, snapshot, assume_training=mode == "evaluation as training")
        for leaf in tensors_in((inputs, kwargs)):
            recorder.source("input", leaf)
        if not recorder.order:
            recorder.say("no tensor among the inputs: there are no data to follow")
        with recorder.hooks(), recorder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the model's owner has seen them
            output = model(*inputs, **kwargs)
        outputs = [recorder.nodes[t] for t in tensors_in(output) if t in recorder.nodes]
        return Trace(mode, recorder.order, outputs, recorder.calls, recorder.notes(model))


class _Recorder(TorchFunctionMode):
    """Sees every torch function call of a forward, and writes it down."""

    def __init__(self, model: nn.Module, snapshot: Snapshot, assume_training: bool) -> None:
        super().__init__()
        self.snapshot, self.assume_training = snapshot, assume_training
        self.order: list[Node] = []
        self.nodes: MutableMapping[Tensor, Node] = WeakTensorKeyDictionary()
        # base → its views, weakly
        self.views: MutableMapping[Tensor, list[WeakIdRef]] = WeakTensorKeyDictionary()
        self.paths = paths(model)
        self.parameters = snapshot.parameters
        self.stack: list[nn.Module] = []
        self.where: list[str] = []
        self.given: list[Any] = []  # the arguments of each module that is running
        self.calls: Counter[str] = Counter()
        self.norms_before: list[int] = []
        self.norm_count = 0
        self.said: dict[str, None] = {}
        devices = {p.device.type for p in self.parameters.values()}
        self.on_cpu = devices <= {"cpu"}
        self.state = torch.get_rng_state()

    # -- which module is running -----------------------------------------------------------------

    @cached_property
    def known(self) -> set[int]:
        """Tensors that the model holds as attributes or buffers."""
        held = [value for attributes in self.snapshot.attributes for value in attributes.values()]
        return {id(tensor) for tensor in tensors_in(held)} | {
            id(buffer) for buffer, _ in self.snapshot.buffers
        }

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        # A module made within a forward has no path: its calls belong to whoever made it.
        path = self.paths.get(id(module), self.where[-1] if self.where else "")
        self.stack.append(module)
        self.where.append(path)
        self.given.append(args)
        self.norms_before.append(self.norm_count)
        if id(module) in self.paths:
            self.calls[path] += 1

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.stack.pop()
        self.given.pop()
        path, before = self.where.pop(), self.norms_before.pop()
        for tensor in tensors_in(output):
            if tensor not in self.nodes:  # made where nothing is seen: its trail goes on from here
                given = tuple(dict.fromkeys(self._node(one) for one in tensors_in((args, kwargs))))
                self.nodes[tensor] = self._append("opaque", path, given, tensor, "")
        own = module._buffers if not is_scripted(module) else {}
        running = own.get("running_var")
        if running is None or self.norm_count > before:
            return
        # BatchNorm written out by hand: a module that keeps running statistics of its own.
        for tensor in tensors_in(output)[:1]:
            if not self._node(tensor).data:
                continue
            old = next((v for b, v in self.snapshot.buffers if b is running), None)
            moved = old is None or running.is_meta or not torch.equal(running, old)
            node = self._append("batch_norm", path, (self._node(tensor),), tensor, "")
            positions = tensor[0, 0].numel() if tensor.ndim > 2 else 1
            live = (moved and module.training) or (self.assume_training and moved)
            momentum = getattr(module, "momentum", None)
            node.batch_norm = BatchNormCall(
                live, tensor.shape[0] * positions if tensor.ndim else 1, positions, momentum
            )
            self.nodes[tensor] = node

    # -- nodes -----------------------------------------------------------------------------------

    def source(self, op: str, tensor: Tensor) -> Node:
        node = self._append(op, "", (), tensor, "", data=op == "input")
        self.nodes[tensor] = node
        return node

    def _node(self, tensor: Tensor) -> Node:
        if tensor in self.nodes:
            return self.nodes[tensor]
        if id(tensor) in self.parameters:
            return self.source("parameter", tensor)
        if id(tensor) in self.known or not self.given:
            return self.source("constant", tensor)
        # Made where nothing is seen, by scripted code or an extension: its trail goes on from here.
        where = self.where[-1]
        self.say(
            f"a tensor of unknown origin in {where or 'the model'}: taken to depend on what that "
            "was given"
        )
        given = tuple(self.nodes[t] for t in tensors_in(self.given[-1]) if t in self.nodes)
        node = self._append("opaque", where, given, tensor, _source_line())
        self.nodes[tensor] = node
        return node

    def _append(
        self,
        op: str,
        module: str,
        inputs: tuple[Node, ...],
        tensor: Tensor,
        source: str,
        data: bool = False,
        draws: bool = False,
    ) -> Node:
        node = Node(
            index=len(self.order),
            op=op,
            module=module,
            inputs=inputs,
            shape=tuple(tensor.shape),
            source=source,
            data=data or any(node.data for node in inputs),
            random=draws or any(node.random for node in inputs),
            draws=draws,
        )
        self.order.append(node)
        return node

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        raw = getattr(func, "__name__", str(func))
        changed = written(raw, args, kwargs)
        result = self._run(func, args, kwargs)
        if raw in TO_PYTHON:
            self._note_python(raw, args)
        outputs = tensors_in(result)
        if raw in IN_PLACE_OPERATORS or raw == "__setitem__":
            outputs = outputs or list(changed)
        drew = (raw not in QUIET and self._drew()) or raw in RANDOM
        if not outputs:
            return result
        reads = args[1:] if raw in OVERWRITE else () if raw in SHAPED_LIKE else args
        given = tensors_in(reads) + ([] if raw in SHAPED_LIKE else tensors_in(kwargs))
        inputs = tuple(dict.fromkeys(self._node(tensor) for tensor in given))
        name = plain_name(raw)
        where = self.where[-1] if self.where else ""
        node = self._append(name, where, inputs, outputs[0], _source_line(), draws=drew)
        self._describe(node, func, args, kwargs)
        for tensor in outputs:
            if any(tensor is one for one in given) and name not in PASS_THROUGH:
                changed.append(tensor)
            self.nodes[tensor] = node
            if tensor._base is not None:
                views = self.views.get(tensor._base, [])
                views.append(WeakIdRef(tensor))
                self.views[tensor._base] = views
        for tensor in changed:
            self._write(tensor, node)
        return result

    def _write(self, tensor: Tensor, node: Node) -> None:
        """A tensor has changed in place: so has what it is a view of, or what views it."""
        self.nodes[tensor] = node
        base = tensor._base
        if base is not None:
            old = self._node(base)
            if old is not node:
                self.nodes[base] = self._append(
                    node.op, node.module, tuple(dict.fromkeys((old, node))), base, node.source
                )
            return
        for reference in self.views.get(tensor, []):
            view = reference()
            if view is not None:
                self.nodes[view] = node

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is F.batch_norm:
            call = bind_batch_norm(args, kwargs)
            if call["training"] and call["input"].numel() == call["input"].shape[1]:
                # One value a channel, which torch refuses; rules.py says so, and the rest is seen.
                call |= {"training": False, "running_mean": None, "running_var": None}
                zero = torch.zeros_like(call["input"][0].flatten()[: call["input"].shape[1]])
                return func(**{**call, "running_mean": zero, "running_var": zero + 1})
        return func(*args, **kwargs)

    def _drew(self) -> bool:
        """Whether torch's generator has moved since the last call."""
        if not self.on_cpu:
            return False
        state = torch.get_rng_state()
        moved = not torch.equal(state, self.state)
        self.state = state
        return moved

    # -- what a call means -----------------------------------------------------------------------

    def _describe(self, node: Node, func: Any, args: tuple[Any, ...], kwargs: Any) -> None:
        op = node.op
        if op in DROPOUTS:
            default = op not in ("alpha_dropout", "feature_alpha_dropout")
            rate = float(argument(args, kwargs, 1, "p", 0.5))
            training = bool(argument(args, kwargs, 2, "training", kwargs.get("train", default)))
            node.facts["rate"] = rate
            kind = DROPOUTS[op]
            if kind == "element-wise" and through(node.inputs[0]).op == "softmax":
                kind = "attention"
            self._intrinsic(node, kind, rate, training)
        elif op == "scaled_dot_product_attention":
            rate = float(argument(args, kwargs, 4, "dropout_p", 0.0))
            self._intrinsic(node, "attention", rate, True)
        elif op == "multi_head_attention_forward":
            rate = float(argument(args, kwargs, 10, "dropout_p", 0.0))
            self._intrinsic(
                node, "attention", rate, bool(argument(args, kwargs, 13, "training", True))
            )
        elif op in RECURRENT:
            at = next(i for i, argument in enumerate(args) if isinstance(argument, list))
            layers, rate, training = int(args[at + 2]), float(args[at + 3]), bool(args[at + 4])
            self._intrinsic(node, "recurrent", rate if layers > 1 else 0.0, training)
        elif op == "rrelu":
            self._intrinsic(node, "noise", None, node.draws)
        elif func is F.batch_norm:
            self._batch_norm(node, bind_batch_norm(args, kwargs))
        elif op == "batch_norm":  # torch.batch_norm has another order
            names = ["input", "weight", "bias", "running_mean", "running_var", "training"]
            call = dict(zip(names, args, strict=False)) | kwargs
            self._batch_norm(node, {**call, "momentum": argument(args, kwargs, 6, "momentum", 0)})
        elif op in NORMS or op in ("linear", "addmm") or op.startswith("conv"):
            self._remember_parameters(node, func, args, kwargs)
        elif op == "bernoulli":
            value = argument(args, kwargs, 1, "p", None)
            if isinstance(value, float | int):
                node.facts["rate"] = 1 - float(value)
        elif op == "sub" and getattr(func, "__name__", "") in ("__rsub__", "rsub"):
            node.facts["complement"] = node.random  # 1 - mask
        elif op in ("lt", "le", "gt", "ge"):
            other = args[1] if len(args) > 1 else None
            if isinstance(other, float) and 0 < other < 1 and node.random:
                node.facts["rate"] = 1 - float(other) if op in ("lt", "le") else float(other)
        if node.dropout is None and node.data:
            if node.draws:
                node.dropout = DropoutCall("noise", None, op)
            elif op not in RECURRENT:
                self._mask(node)

    def _intrinsic(self, node: Node, kind: str, rate: float | None, training: bool) -> None:
        active = training or self.assume_training
        node.random = any(parent.random for parent in node.inputs)
        node.draws = False
        if not active or rate == 0:
            return
        node.random = node.draws = True
        if node.data:
            node.dropout = DropoutCall(kind, rate, node.op)

    def _batch_norm(self, node: Node, call: dict[str, Any]) -> None:
        if not node.data or not any(p.data for p in node.inputs):
            return  # normalizes weights (NFNet, BiT), no data
        self.norm_count += 1
        x, running = call["input"], call.get("running_mean")
        positions = x[0, 0].numel() if x.ndim > 2 else 1
        module = self.stack[-1] if self.stack else None
        momentum = getattr(module, "momentum", call.get("momentum"))
        training = bool(call.get("training")) or self.assume_training
        node.batch_norm = BatchNormCall(
            training and running is not None, x.shape[0] * positions, positions, momentum
        )
        for name in ("weight", "bias"):
            node.facts[name] = id(call.get(name))

    def _remember_parameters(
        self, node: Node, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        given = [a for a in (*args[1:], *kwargs.values()) if isinstance(a, Tensor)]
        if node.op in NORMS:
            node.facts["parameters"] = [id(tensor) for tensor in given]
        else:
            bias = argument(args, kwargs, 2, "bias", None)
            node.facts["bias"] = 0 if bias is None else bias.numel()

    def _mask(self, node: Node) -> None:
        """Random numbers meet data: a dropout made by hand, by what the meeting looks like."""
        noise = [p for p in node.inputs if p.random and not p.data]
        streams = [p for p in node.inputs if p.data]
        if not noise or not streams:
            return
        op = node.op
        if op in SELECTION:
            node.dropout = DropoutCall("selection", None, op)
            return
        root, passed = _root(noise[0])
        pooled = any("pool" in name or name.startswith("conv") for name in passed)
        if passed & ORDERING:  # which entries are seen, by a random order
            kind = "selection"
        elif op in ("linear", "matmul", "bmm", "addmm", "einsum") or op.startswith("conv"):
            kind = "weight"
        elif root.op in ("randn", "randn_like", "normal"):
            kind = "noise"
        elif op in ("mul", "div", "where", "masked_fill"):
            kind = "block" if pooled else _shape_kind(root.shape, streams[0].shape)
        else:
            kind = "noise"
        # A block is larger than what is drawn: its rate is not that of the draw.
        rate = None if kind == "block" else _rate(noise[0])
        if op == "masked_fill" and rate is not None:  # the mask says what is dropped, not kept
            rate = 1 - rate
        node.dropout = DropoutCall(kind, rate, op)

    def _note_python(self, raw: str, args: tuple[Any, ...]) -> None:
        if not args or not isinstance(args[0], Tensor) or args[0] not in self.nodes:
            return
        node = self.nodes[args[0]]
        line = _source_line()
        at = f" at {line}" if line else ""
        if node.random and not node.data:
            self.say(
                f"a random number decides in Python{at}: what it switches was followed in one "
                "direction only"
            )
        elif raw in ("numpy", "__array__", "tolist") and node.data:
            self.say(f"data leave torch by {raw}{at}: their trail ends there")

    def say(self, note: str) -> None:
        self.said[note] = None

    def notes(self, model: nn.Module) -> list[str]:
        scripted = [
            self.paths[id(module)] or type(module).__name__
            for module in model.modules()
            if is_scripted(module)
        ]
        if scripted:
            self.say(f"scripted modules are opaque: {', '.join(scripted[:5])}")
        return list(self.said)


def _root(node: Node) -> tuple[Node, set[str]]:
    """Where a mask's random numbers are drawn, and what was done with them on the way."""
    passed: set[str] = set()
    while not node.draws:
        passed.add(node.op)
        node = next(parent for parent in node.inputs if parent.random)
    return node, passed


def _rate(node: Node) -> float | None:
    """The drop rate of a mask made by hand, where a call on its way states it."""
    inverted = False
    while True:
        if "rate" in node.facts:
            rate = float(node.facts["rate"])
            return 1 - rate if inverted else rate
        if node.draws:
            return None
        if node.facts.get("complement") or node.op in ("logical_not", "bitwise_not", "invert"):
            inverted = not inverted
        node = next(parent for parent in node.inputs if parent.random)


def _shape_kind(mask: tuple[int, ...], data: tuple[int, ...]) -> str:
    varying = [size for size in mask if size != 1]
    if not varying or (len(varying) == 1 and mask[0] == data[0] != 1 and len(data) > 1):
        return "path"
    if len(mask) == len(data) >= 3 and all(size == 1 for size in mask[2:]):
        return "spatial"
    return "element-wise"


def _source_line() -> str:
    """file:line of the innermost call outside torch and this package's diagnostics."""
    frame: Any = sys._getframe(1)
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    while frame is not None:
        file = frame.f_code.co_filename
        if file == __file__:
            return ""  # reached record: no code of the model's own made this call
        if not file.startswith(_TORCH) and not file.startswith("<"):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


# -- what depends on what ------------------------------------------------------------------------


def active_dropouts(
    model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> list[Node]:
    """The dropouts of one forward in training mode.

    Raises:
        UserError: the model does not run in training mode on these inputs.
    """
    try:
        return record(model, inputs, kwargs, mode="training").dropouts
    except Exception as error:
        raise UserError(
            f"the model does not run in training mode on these inputs "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
