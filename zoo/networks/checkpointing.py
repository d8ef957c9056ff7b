"""Gradient checkpointing that leaves BatchNorm's running statistics as one forward would.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, section 4: activations inside a
block are not kept for the gradient but computed again. The second forward must not write a second
time: torch restores the random numbers for it, and the buffers are the zoo's to keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, *inputs: Tensor) -> Tensor:
    """Runs a block whose activations are computed again for the gradient instead of kept.

    Args:
        block: any module; its gradients and its buffers come out as without checkpointing.
        inputs: what its forward takes; these are kept.

    Returns:
        The block's output.
    """

    if not torch.is_grad_enabled():
        return block(*inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _scratch_buffers(block)  # of the forward, of the recomputation

    output: Tensor = checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)
    return output


@contextmanager
def _scratch_buffers(module: nn.Module) -> Iterator[None]:
    """Gives a module copies of its buffers to write into, and takes them away at the end."""
    owned = [
        (owner, name, buffer)
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
    ]
    for owner, name, buffer in owned:
        setattr(owner, name, buffer.clone())
    try:
        yield
    finally:
        for owner, name, buffer in owned:
            setattr(owner, name, buffer)
