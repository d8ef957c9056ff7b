"""What the torch functions that a forward calls are: their kinds, names and arguments."""

from __future__ import annotations

from typing import Any

from torch import Tensor

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
TO_PYTHON = frozenset("__bool__ item tolist __float__ __int__ __index__ numpy __array__".split())
IN_PLACE_OPERATORS = frozenset(
    f"__i{name}__" for name in "add sub mul truediv floordiv mod pow matmul and or xor".split()
)


def written(raw: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that a call says it changes in place."""
    in_place = (raw.endswith("_") and not raw.endswith("__")) or raw in IN_PLACE_OPERATORS
    if (in_place or raw == "__setitem__") and args and isinstance(args[0], Tensor):
        return [args[0]]
    if raw == "__set__" and args and isinstance(args[0], Tensor):  # tensor.data = …
        return [args[0]]
    if kwargs.get("inplace") and args and isinstance(args[0], Tensor):
        return [args[0]]
    return tensors_in(kwargs.get("out"))


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors within a forward's arguments or results."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    if isinstance(value, dict):
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


def bind_batch_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = "input running_mean running_var weight bias training momentum eps".split()
    defaults = {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}
    return defaults | dict(zip(names, args, strict=False)) | kwargs
