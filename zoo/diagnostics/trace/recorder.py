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
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdRef, WeakTensorKeyDictionary

from zoo.diagnostics.trace.graph import BatchNormCall, DropoutCall, Node, Trace, beyond, through
from zoo.diagnostics.trace.held import held_by
from zoo.diagnostics.trace.operations import (
    DROPOUTS,
    FROM_PYTHON,
    LENDS_SHAPE,
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
    base_name,
    bind_normalization,
    plain_name,
    refused,
    run_single_values,
    tensors_in,
    written,
)
from zoo.diagnostics.trace.snapshot import (
    Snapshot,
    begin_training,
    eagerly,
    is_exported,
    is_scripted,
    paths,
    set_mode,
    storage_of,
    tensors_of,
    to_model,
    unseen_modules,
    untouched,
    unwrapped,
)
from zoo.errors import UserError

_CHECKPOINT = torch.utils.checkpoint.__file__
_OWN = str(Path(__file__).parent.parent) + os.sep
_TORCH = str(Path(torch.__file__).parent) + os.sep


def record(
    model: nn.Module,
    inputs: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    mode: str,
    run: Callable[..., Any] | None = None,
    answer: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
) -> Trace:
    """Runs one forward and records it; the model and the random state come out untouched.

    Args:
        model: any eager module.
        inputs: the forward's positional arguments; tensors go where the model is.
        kwargs: the forward's keyword arguments.
        mode: ``training``; ``as it is``, the modes left alone; ``evaluation``; or ``evaluation as
            training``: dropout that is set to be off and BatchNorm with running statistics count
            as they would in training.
        run: takes the arguments and runs the model; the model itself by default.
        answer: picks what counts of the output; everything by default.
        seed: of all random numbers.

    Raises:
        Exception: whatever the model's forward raises.
    """
    with prepared(model, inputs, kwargs or {}, mode, seed) as (snapshot, inputs, kwargs):
        recorder = Recorder(model, snapshot, assume_training=mode == "evaluation as training")
        recorder.begin((inputs, kwargs))
        with recorder.recording():
            output = (run or model)(*inputs, **kwargs)
        return recorder.trace(mode, answer(output) if answer else output, seed)


@contextmanager
def prepared(
    model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], mode: str, seed: int
) -> Iterator[tuple[Snapshot, tuple[Any, ...], dict[str, Any]]]:
    """The modes, random state and arguments (on the model's device) of a forward to be watched.

    The model and the random state come out untouched.

    Args:
        model, inputs, kwargs, mode, seed: as ``record`` takes them.
    """
    inputs, kwargs = to_model(model, (inputs, kwargs))
    with untouched(model) as snapshot, eagerly(model), torch.no_grad(), warnings.catch_warnings():
        if mode == "training":
            begin_training(model)
        elif mode != "as it is":
            set_mode(model, training=False)
        snapshot.randomness.seed(seed)
        if any(torch.nn.parameter.is_lazy(p) for p in snapshot.parameters.values()):
            raise UserError(
                "a lazy parameter has no shape yet: run the model once, then it can be recorded"
            )
        warnings.simplefilter("ignore")  # the model's owner has seen them
        yield snapshot, inputs, kwargs


class Recorder(TorchFunctionMode):
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
        self.python = snapshot.randomness.python_state()
        self.python_drew = False  # since a torch function last took numbers from Python
        self.left = False  # data have left torch
        self.decided = False  # random numbers decide which way the forward goes
        self.by_values = False  # Python reads values that depend on the inputs
        self.number = 0  # of calls of torch functions so far
        self.buffers = {
            id(buffer): (self.paths[id(module)], name)
            for module in model.modules()
            for name, buffer in module.named_buffers("", False)
        }
        self.model = model
        self.outermost: Any = None  # frame beyond which no code is the model's
        self.modules = {self.paths[id(module)]: module for module in model.modules()}
        self.held = snapshot.tensors()
        self.known = {id(tensor): path for path, tensor in self.held.items()}
        # Memory that was written to → the call that did, the last one with data if there is any.
        self.places: dict[int, Node] = {}
        self.statistics: set[str] = set()  # paths of those of normalizations that are recorded

    # -- which module is running -----------------------------------------------------------------

    def begin(self, given: Any) -> None:
        """Takes the tensors among a forward's arguments for data."""
        for leaf in tensors_in(given):
            self.source("input", leaf)
        if not self.order:
            self.say("no tensor among the inputs: there are no data to follow")

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Sees the functions called and the modules run while it lasts."""
        handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, with_kwargs=True),
        ]
        self.outermost = sys._getframe(2)  # who says ``with recorder.recording()``
        try:
            with self:
                yield
        finally:
            self.outermost = None
            for handle in handles:
                handle.remove()

    def trace(self, mode: str, output: Any, seed: int = 0) -> Trace:
        """What was recorded."""
        self._look_at_python()
        if self.python_drew:
            self._say_decided("", "of Python or numpy")
        outputs = [self.nodes[t] for t in tensors_in(output) if t in self.nodes]
        unseen = unseen_modules(self.model, self.snapshot.found)
        if unseen:
            names = [path or type(self.model).__name__ for path in unseen[:5]]
            self.say(f"scripted modules are opaque: {', '.join(names)}")
        moved, unaudited = self._moved()
        return Trace(
            mode,
            self.order,
            outputs,
            self.calls,
            list(self.said),
            unseen,
            self.decided,
            self.by_values,
            seed,
            moved,
            [*self._hidden(), *unaudited],
        )

    def _moved(self) -> tuple[list[str], list[str]]:
        """Paths of held tensors that moved with the data, and sentences about what was not seen."""
        before = {id(buffer): value for buffer, value in self.snapshot.buffers}
        moved, unaudited = [], []
        for path, tensor in tensors_of(self.model).items():
            if path in self.statistics or not tensor.is_floating_point():
                continue
            node = self.nodes.get(tensor)
            if tensor is self.held.get(path):
                if (written := self.places.get(_place(tensor))) is not None:
                    node = written
                elif (value := before.get(id(tensor))) is None or _same(tensor, value):
                    continue
                elif node is None:  # no torch function was called with it, and yet it has changed
                    unaudited.append(f"{path} changes by code that cannot be followed")
                    continue
                else:  # by a function that does not say what it writes to
                    moved.append(path)
                    continue
            if node is not None and node.data:
                moved.append(path)
        return moved, unaudited

    def _hidden(self) -> Iterator[str]:
        """Sentences about what ran unseen and bears on normalization or dropout."""
        unknown = [node for node in self.order if "unknown" in node.facts]
        for node in unknown:
            after = beyond(self.order, lambda one, node=node: one is node)  # type: ignore[misc]
            norms = [
                one.module
                for one in self.order
                if one.batch_norm is not None and one.batch_norm.live and after[one.index]
            ]
            if node.draws or norms or "network" in node.facts:
                where = node.module or type(self.model).__name__
                at = f" at {node.source}" if node.source else ""
                reaches = f" and reaches BatchNorm {norms[0] or 'of the model'}" if norms else ""
                yield f"what runs in {where}{at} cannot be followed{reaches}"

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self.given:
            with torch._C.DisableTorchFunction():
                for tensor in tensors_in(args):  # of unknown origin in the caller, not in here
                    self._node(tensor)
        # A module made within a forward has no path: its calls belong to whoever made it.
        path = self.paths.get(id(module), self.where[-1] if self.where else "")
        self.stack.append(module)
        self.where.append(path)
        self.given.append(args)
        self.norms_before.append(self.norm_count)
        if id(module) in self.paths:
            self.calls[path] += 1

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        with torch._C.DisableTorchFunction():  # what is asked here is no call of the model's
            self.stack.pop()
            self.given.pop()
            path, before = self.where.pop(), self.norms_before.pop()
            followed = not (is_scripted(module) or is_exported(module))
            for tensor in tensors_in(output):
                if self._found(tensor) is not None or id(tensor) in self.known:
                    continue
                # Made where nothing is seen: its trail goes on from here.
                given = tuple(dict.fromkeys(self._node(one) for one in tensors_in((args, kwargs))))
                node = self._unknown(tensor, path, given)
                if not followed:
                    node.facts["network"] = True
                    if any(module is one for one in self.snapshot.modules):
                        del node.facts["unknown"]  # ``unseen_modules`` names it as a whole
            if followed and self.norm_count == before:
                self._normalized_by_hand(module, path, output)

    def _normalized_by_hand(self, module: nn.Module, path: str, output: Any) -> None:
        """Notes BatchNorm written out by hand: a module keeps running statistics of its own."""
        running = module._buffers.get("running_var")
        if running is None:
            return
        for tensor in tensors_in(output)[:1]:
            if not self._node(tensor).data:
                continue
            old = next((v for b, v in self.snapshot.buffers if b is running), None)
            moved = running.is_meta or old is None or not _same(running, old)
            node = self._append("batch_norm", path, (self._node(tensor),), tensor, "")
            positions = tensor[0, 0].numel() if tensor.ndim > 2 else 1
            live = (moved and module.training) or (self.assume_training and moved)
            momentum = getattr(module, "momentum", None)
            node.batch_norm = BatchNormCall(
                live, tensor.shape[0] * positions if tensor.ndim else 1, positions, momentum, path
            )
            self.nodes[tensor] = node
            self.statistics |= {".".join(filter(None, (path, name))) for name in module._buffers}

    # -- nodes -----------------------------------------------------------------------------------

    def source(self, op: str, tensor: Tensor) -> Node:
        node = self._append(op, "", (), tensor, "", data=op == "input")
        self.nodes[tensor] = node
        return node

    def _node(self, tensor: Tensor) -> Node:
        if (node := self._found(tensor)) is not None:
            return node
        path = self.known.get(id(tensor))
        own = id(tensor) in self.parameters
        if path is not None or own or not self.given or _named_by_code(tensor, self.outermost):
            node = self.source("parameter" if own else "constant", tensor)
            if path is not None:
                node.facts["held"] = path
            return node
        # Made where nothing is seen, by scripted code or an extension: its trail goes on from here.
        where = self.where[-1]
        self._look_at_python()
        if self.python_drew and not self.left:  # a mask of numpy's
            self.python_drew = False
            line = self._source_line()
            self.nodes[tensor] = self._append("from_numpy", where, (), tensor, line, draws=True)
            return self.nodes[tensor]
        self.say(
            f"a tensor of unknown origin in {where or 'the model'}: taken to depend on what that "
            "was given"
        )
        known: list[Node] = []
        for given in reversed(self.given):
            known = [node for t in tensors_in(given) if (node := self._found(t)) is not None]
            if known:
                break
        return self._unknown(tensor, where, tuple(known))

    def _unknown(self, tensor: Tensor, where: str, given: tuple[Node, ...]) -> Node:
        """A tensor that no call that was seen has made."""
        node = self._append("opaque", where, given, tensor, self._source_line(), draws=self._drew())
        node.facts["unknown"] = True
        self.nodes[tensor] = node
        return node

    def _found(self, tensor: Tensor) -> Node | None:
        """The node of a tensor, of what a transform has wrapped, or of what it is a view of."""
        if tensor in self.nodes:
            return self.nodes[tensor]
        inner = unwrapped(tensor)
        if inner in self.nodes:
            return self.nodes[inner]
        base = inner._base
        return self.nodes.get(base) if base is not None else None

    def _keep(self, tensor: Tensor, node: Node) -> None:
        """A call has made a tensor."""
        self.nodes[tensor] = node
        inner = unwrapped(tensor)
        if inner is not tensor:
            self.nodes[inner] = node
        base = tensor._base
        if base is not None:
            # What a call gives may be a view of what nobody else sees, as a linear layer's is.
            if self._found(base) is None and id(base) not in self.parameters:
                self.nodes[base] = node
            views = self.views.get(base, [])
            views.append(WeakIdRef(tensor))
            self.views[base] = views

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
        self.number += 1
        raw = base_name(func)
        changed = written(raw, args, kwargs)
        first = args[0] if args and isinstance(args[0], Tensor) else None
        version = None if first is None else _version(first)
        call = bind_normalization(func, args, kwargs)
        if call is not None and refused(call, raw):
            # One value a channel, which torch refuses; a rule reports it, and the rest is seen.
            result = run_single_values(func, args, kwargs, call)
        else:
            result = func(*args, **kwargs)
        if raw in TO_PYTHON:
            self._note_python(raw, args)
        outputs = tensors_in(result)
        outputs = outputs or list(changed)  # ``x[0] = y`` and ``x.data = y`` give nothing
        if not outputs:
            return result
        drew = (raw not in QUIET and self._drew()) or raw in RANDOM
        if raw == "broadcast_tensors":  # each is one of those given, in another shape
            for tensor, one in zip(outputs, tensors_in(args), strict=False):
                self._keep(tensor, self._node(one))
            return result
        name = plain_name(raw)
        if raw in OVERWRITE:
            reads = tensors_in(args[1:]) + tensors_in(kwargs)
        elif raw in SHAPED_LIKE:
            reads = []
        elif name in LENDS_SHAPE:
            reads = tensors_in(args[:1])
        else:
            reads = tensors_in(args) + tensors_in(kwargs)
        inputs = tuple(dict.fromkeys(self._node(tensor) for tensor in reads))
        drew = self._drew_in_python(raw, args, kwargs) or drew
        where = self.where[-1] if self.where else ""
        node = self._append(name, where, inputs, outputs[0], self._source_line(), draws=drew)
        node.call = self.number
        self._describe(node, func, args, kwargs, call)
        if (
            first is not None
            and version != _version(first)
            and not any(one is first for one in changed)
        ):
            changed.extend(one for one in outputs if one is first)
        for tensor in outputs:
            self._keep(tensor, node)
        for tensor in changed:
            self._write(tensor, node)
        return result

    def _write(self, tensor: Tensor, node: Node) -> None:
        """A tensor has changed in place: so has what it is a view of, or what views it."""
        self.nodes[tensor] = node
        place = _place(tensor)
        if node.data or place not in self.places:
            self.places[place] = node
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

    def _drew(self) -> bool:
        """Whether torch's generator has moved since the last call."""
        if not self.on_cpu:
            return False
        state = torch.get_rng_state()
        moved = not torch.equal(state, self.state)
        self.state = state
        return moved

    def _look_at_python(self) -> None:
        """Notes whether Python's or numpy's random numbers have moved since the last look."""
        state = self.snapshot.randomness.python_state()
        if state != self.python:
            self.python, self.python_drew = state, True

    def _drew_in_python(self, raw: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call takes random numbers of Python's or numpy's into torch."""
        self._look_at_python()
        if not self.python_drew:
            return False
        given = [*args, *kwargs.values()]
        if raw in FROM_PYTHON or (
            plain_name(raw) in ("mul", "div", "add", "sub")
            and any(isinstance(one, float | int | np.generic | np.ndarray) for one in given)
        ):
            self.python_drew = False
            return True
        # Taken by no tensor: it has decided something.
        self._say_decided(self._source_line(), "of Python or numpy")
        self.python_drew = False
        return False

    def _say_decided(self, line: str, whose: str = "") -> None:
        self.decided = True
        words = " ".join(word for word in ("a random number", whose) if word)
        at = f" at {line}" if line else ""
        self.say(
            f"{words} decides in Python{at}: what it switches was followed in one direction only"
        )

    # -- what a call means -----------------------------------------------------------------------

    def _describe(
        self,
        node: Node,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Any,
        call: dict[str, Any] | None,
    ) -> None:
        op = node.op
        if op in DROPOUTS:
            default = op not in ("alpha_dropout", "feature_alpha_dropout")
            rate = float(argument(args, kwargs, 1, "p", 0.5))
            training = bool(argument(args, kwargs, 2, "training", kwargs.get("train", default)))
            if rate and (training or self.assume_training):
                node.facts["rate"] = rate  # of a mask that this call makes, if it makes one
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
        elif call is not None and call["running_var"] is not None:
            self._batch_norm(node, call)
        elif op == "batch_norm":
            pass  # by the batch alone, in evaluation too
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
            else:
                self._mask(node)
        if node.dropout is not None:
            node.module = self._owner(node.module)
        if node.op in PASS_THROUGH and not tensors_in((args[1:], kwargs)):
            node.facts["call"] = func, args[1:], kwargs
        if node.op in ("embedding", "embedding_bag"):
            node.facts["table"] = id(argument(args, kwargs, 1, "weight", None))
        elif node.op == "linear":
            node.facts["matrix"] = id(argument(args, kwargs, 1, "weight", None))

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
        if not node.data or not self._node(call["input"]).data:
            return  # normalizes weights (NFNet, BiT), no data
        self.norm_count += 1
        x, running = call["input"], call["running_var"]
        positions = x[0, 0].numel() if x.ndim > 2 else 1
        # A normalization is what its statistics belong to, whoever calls it.
        holder, _ = self.buffers.get(id(running), (node.module, ""))
        node.module = holder
        momentum = getattr(self.modules.get(holder), "momentum", call["momentum"])
        live = bool(call["training"]) or self.assume_training
        values = (1 if node.op == "instance_norm" else x.shape[0]) * positions
        node.batch_norm = BatchNormCall(
            live, values, positions, momentum, holder, node.op == "instance_norm"
        )
        node.facts["statistics"] = id(running)
        for one in (running, call["running_mean"]):
            if id(one) in self.known:
                self.statistics.add(self.known[id(one)])
        node.facts["in checkpoint"] = live and _in_checkpoint()
        for name in ("weight", "bias"):
            node.facts[name] = id(call[name])

    def _source_line(self) -> str:
        """file:line of the innermost call outside torch and this package's diagnostics."""
        frame: Any = sys._getframe(1)
        while frame is not None and frame is not self.outermost:
            file = frame.f_code.co_filename
            if not file.startswith((_OWN, _TORCH, "<")):
                return f"{file}:{frame.f_lineno}"
            frame = frame.f_back
        return ""  # no code of the model's own made this call

    def _owner(self, where: str) -> str:
        """Path of the module whose code makes the present call, as far as can be seen."""
        frame: Any = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if frame is self.outermost:
                break
            first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
            if isinstance(first, nn.Module) and id(first) in self.paths:
                path = self.paths[id(first)]
                if path != where:
                    self.calls[path] += 1  # by .forward() or another method: no hook has seen it
                return path
            frame = frame.f_back
        return where

    def _remember_parameters(
        self, node: Node, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        given = [a for a in (*args[1:], *kwargs.values()) if isinstance(a, Tensor)]
        if node.op in NORMS:
            node.facts["parameters"] = [id(tensor) for tensor in given]
        else:
            bias = argument(args, kwargs, 2, "bias", None)
            node.facts["bias"] = 0 if bias is None else bias.numel()
            node.facts["bias path"] = self.known.get(id(bias), "")

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
        elif op in RECURRENT:
            kind = "noise" if root.op.startswith("randn") else "weight"
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
        self.by_values |= node.data
        line = self._source_line()
        at = f" at {line}" if line else ""
        if node.random and not node.data:
            self._say_decided(line)
        elif raw in ("numpy", "__array__", "tolist") and node.data:
            self.left = True
            self.say(f"data leave torch by {raw}{at}: their trail ends there")

    def say(self, note: str) -> None:
        self.said[note] = None


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


def _named_by_code(tensor: Tensor, outermost: Any) -> bool:
    """Whether a global or a variable of a closure, of any code that is running, is this tensor."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame is not outermost:
        code = frame.f_code
        if not code.co_filename.startswith((_OWN, _TORCH)):
            named = [frame.f_globals.get(name) for name in code.co_names]
            named += [frame.f_locals.get(name) for name in code.co_freevars]
            data = [one for one in named if not isinstance(one, nn.Module | FunctionType)]
            if any(one is tensor for _, one in held_by(data)):
                return True
        frame = frame.f_back
    return False


def _place(tensor: Tensor) -> int:
    return storage_of(unwrapped(tensor))


def _same(now: Tensor, before: Tensor) -> bool:
    """Whether two tensors hold the same values, as far as is known."""
    if now.is_meta or now.layout != torch.strided or now.shape != before.shape:
        return now.shape == before.shape
    return torch.equal(now, before) or torch.allclose(now, before, 0, 0, equal_nan=True)


def _version(tensor: Tensor) -> int | None:
    """A count of the changes made in place; None where nothing counts them."""
    return None if tensor.is_inference() else tensor._version


def _in_checkpoint() -> bool:
    """Whether the present call is made within ``torch.utils.checkpoint``."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _CHECKPOINT:
            return True
        frame = frame.f_back
    return False
