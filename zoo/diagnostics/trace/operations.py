"""What the torch functions that a forward calls are: their kinds, names and arguments."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Values unchanged, in another shape or type: a rule looks through these.
PASS_THROUGH = frozenset(
    """view reshape flatten unflatten permute transpose t swapaxes swapdims movedim contiguous
    to type float half bfloat16 double squeeze unsqueeze expand expand_as repeat getitem
    chunk split unbind clone detach narrow select view_as reshape_as type_as get
    requires_grad_ cpu cuda unfold roll pixel_shuffle pixel_unshuffle channel_shuffle""".split()
)
# Where two streams of data meet by summing or side by side.
MERGE = frozenset("add sub cat concat concatenate stack hstack vstack dstack lerp".split())
NORMS = frozenset("layer_norm group_norm instance_norm rms_norm normalize".split())
DROPOUTS = {
    "dropout": "element-wise",
    "native_dropout": "element-wise",
    "dropout1d": "spatial",
    "dropout2d": "spatial",
    "dropout3d": "spatial",
    "feature_dropout": "spatial",
    "alpha_dropout": "alpha",
    "feature_alpha_dropout": "alpha",
}
RECURRENT = frozenset("lstm gru rnn_tanh rnn_relu".split())
# New tensors that take another's shape and none of its values.
SHAPED_LIKE = frozenset(
    """new_empty new_zeros new_ones new_full new_tensor empty_like zeros_like ones_like
    full_like rand_like randn_like randint_like""".split()
)
# The second argument lends its shape or type, and none of its values.
LENDS_SHAPE = frozenset("view_as reshape_as expand_as type_as to align_as sum_to_size".split())
# In place, and nothing of the old value remains.
OVERWRITE = frozenset(
    """bernoulli_ normal_ uniform_ random_ exponential_ cauchy_ geometric_ log_normal_ zero_
    fill_ copy_ set_""".split()
)
RANDOM = frozenset(
    """bernoulli bernoulli_ rand rand_like randn randn_like randint randint_like randperm
    normal normal_ uniform_ random_ exponential_ cauchy_ geometric_ log_normal_ multinomial
    poisson binomial gumbel_softmax fractional_max_pool2d fractional_max_pool3d""".split()
)
# Too common to look at the generator after each.
QUIET = (
    PASS_THROUGH
    | MERGE
    | NORMS
    | frozenset("conv1d conv2d conv3d linear matmul batch_norm relu gelu silu mul div".split())
)
SELECTION = frozenset("getitem gather index_select take take_along_dim embedding".split())
ORDERING = frozenset("argsort sort topk randperm".split())
# Make a tensor of numbers that Python or numpy has.
FROM_PYTHON = frozenset(
    """tensor as_tensor asarray from_numpy new_tensor scalar_tensor frombuffer full full_like
    new_full fill_ masked_fill where""".split()
)
TO_PYTHON = frozenset("__bool__ item tolist __float__ __int__ __index__ numpy __array__".split())
IN_PLACE_OPERATORS = frozenset(
    f"__i{name}__" for name in "add sub mul truediv floordiv mod pow matmul and or xor".split()
)


def written(raw: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that a call says it changes in place."""
    in_place = (raw.endswith("_") and not raw.endswith("__")) or raw in IN_PLACE_OPERATORS
    if (in_place or raw == "__setitem__") and args and isinstance(args[0], Tensor):
        return [args[0]]
    if in_place and raw.startswith("_foreach") and args:
        return tensors_in(args[0])
    if raw == "__set__" and all(isinstance(one, Tensor) for one in args):  # tensor.data = …
        return [args[0]]
    if kwargs.get("inplace") and args and isinstance(args[0], Tensor):
        return [args[0]]
    return tensors_in(kwargs.get("out"))


_LEAVES = (bool, int, float, str)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors within a forward's arguments or results."""
    if value is None or isinstance(value, _LEAVES):
        return []
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if hasattr(value, "__dataclass_fields__"):
        names = value.__dataclass_fields__
        return [tensor for name in names for tensor in tensors_in(getattr(value, name, None))]
    return []


def plain_name(raw: str) -> str:
    """``__iadd__``, ``add_`` and ``__radd__`` are ``add``."""
    name = raw.strip("_")
    if raw in IN_PLACE_OPERATORS:
        name = name[1:]
    if raw.startswith("__r") and raw.endswith("__") and name[1:] in REFLECTED:
        name = name[1:]
    return {"truediv": "div", "multiply": "mul", "subtract": "sub", "divide": "div"}.get(name, name)


REFLECTED = frozenset("add sub mul truediv div matmul pow".split())


def argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, default: Any
) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


_FUNCTIONAL = "input running_mean running_var weight bias training momentum eps".split()
_NATIVE = "input weight bias running_mean running_var training momentum eps".split()
_NORMALIZATIONS = frozenset(
    "batch_norm instance_norm native_batch_norm cudnn_batch_norm miopen_batch_norm".split()
)
_SYNONYMS = {
    "use_input_stats": "training",
    "exponential_average_factor": "momentum",
    "epsilon": "eps",
}


def base_name(func: Any) -> str:
    """A function's name; ``batch_norm`` of ``torch.ops.aten.batch_norm.default`` as well."""
    return str(getattr(func, "__name__", func)).partition(".")[0]


@cache  # asked of every call
def _is_normalization(func: Any) -> bool:
    return base_name(func) in _NORMALIZATIONS


def bind_normalization(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any] | None:
    """The arguments of a normalization that can keep running statistics; None of other calls.

    Returns:
        By the names of ``F.batch_norm``, whichever function was called.
    """
    if not _is_normalization(func):
        return None
    defaults: dict[str, Any] = dict.fromkeys(("running_mean", "running_var", "weight", "bias"))
    per_sample = base_name(func) == "instance_norm"
    defaults |= {"training": per_sample, "momentum": 0.1, "eps": 1e-5}
    named = {_SYNONYMS.get(name, name): value for name, value in kwargs.items()}
    return defaults | dict(zip(_order(func), args, strict=False)) | named


def run_normalization(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], **changes: Any
) -> Any:
    """Calls a normalization with some arguments, by the names of ``F.batch_norm``, changed."""
    positional, named = list(args), dict(kwargs)
    spelled = {_SYNONYMS.get(name, name): name for name in named}
    for name, value in changes.items():
        position = _order(func).index(name)
        if position < len(positional):
            positional[position] = value
        elif name == "training" and func is F.instance_norm:
            named["use_input_stats"] = value
        else:
            named[spelled.get(name, name)] = value
    return func(*positional, **named)


def _order(func: Any) -> list[str]:
    return _FUNCTIONAL if func in (F.batch_norm, F.instance_norm) else _NATIVE


def run_single_values(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], call: dict[str, Any]
) -> Any:
    """Calls BatchNorm on one value a channel, which torch refuses in training mode."""
    zero = torch.zeros_like(call["input"][0].flatten()[: call["input"].shape[1]])
    return run_normalization(
        func, args, kwargs, training=False, running_mean=zero, running_var=zero + 1
    )


def has_single_values(call: dict[str, Any]) -> bool:
    """Whether a bound normalization has one value a channel."""
    x = call["input"]
    return bool(x.ndim > 1 and x.numel() == x.shape[1])


def refused(call: dict[str, Any], raw: str) -> bool:
    """Whether torch refuses a bound normalization in training mode: one value a channel."""
    return bool(call["training"]) and raw != "instance_norm" and has_single_values(call)
