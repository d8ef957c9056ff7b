"""Generating tokens one by one from any language network: temperature, top-k, top-p, a seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from zoo.core.modes import evaluating
from zoo.networks.decoding import Reader


class Sampling(TypedDict, total=False):
    """How ``generate`` chooses a token: its arguments of these names."""

    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int | None


def generate(
    network: nn.Module,
    prompt: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    cached: bool = True,
) -> Iterator[Tensor]:
    """Yields one new token of each sequence at a time, in evaluation mode.

    Once the context is full, its older half is forgotten and the newer half read again, so that a
    long text costs two forwards a token at most. With and without the cache the network sees the
    same tokens at the same positions.

    Args:
        network: with ``forward(tokens, cache)``, ``make_cache()`` and ``context_length`` (None for
            one that may run on for ever).
        prompt: tokens (B, T), at least one each; of a long prompt the end is seen.
        max_new_tokens: how many to yield.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: only the k likeliest tokens.
        top_p: only the fewest tokens that have a probability of p together (nucleus sampling:
            Holtzman et al. 2020, section 3.1).
        seed: of the draws; drawn from torch's global generator where none is given.
        cached: keeps what earlier tokens computed; False computes all of it anew for each token.

    Yields:
        Tokens (B,).

    Raises:
        ValueError: an empty prompt, or a setting out of range.
    """
    if prompt.ndim != 2 or not prompt.shape[1]:
        raise ValueError("the prompt is empty: give at least one token")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: it cannot be negative")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}: give a number from 0 up")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}: it must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: it must be above 0 and at most 1")

    @torch.inference_mode()
    def stream(seed: int | None) -> Iterator[Tensor]:
        device = next(network.parameters()).device
        if seed is None:
            seed = int(torch.randint(2**31, ()))
        generator = torch.Generator(device).manual_seed(seed)
        window = prompt.to(device)
        context: Any = network.context_length
        if context is not None:
            window = window[:, -context:]
        cache = network.make_cache() if cached else None  # type: ignore[operator]
        read = Reader(network)
        unread = window
        for _ in range(max_new_tokens):
            with evaluating(network):
                logits = read(unread if cached else window, cache)[:, -1].float()
            token = choose(logits, temperature, top_k, top_p, generator)
            yield token
            unread = token[:, None]
            if cached and context is None:
                continue
            window = torch.cat([window, unread], 1)
            if context is not None and window.shape[1] > context:
                window = window[:, -max(1, context // 2) :]
                if cached:
                    cache, unread = network.make_cache(), window  # type: ignore[operator]

    return stream(seed)


def choose(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
) -> Tensor:
    """Draws one token (B,) from each row of logits (B, V)."""
    if temperature == 0:
        return logits.argmax(1)
    logits = logits / temperature
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None:
        ranked, order = logits.softmax(1).sort(1, descending=True)
        before = ranked.cumsum(1) - ranked  # the likeliest always stays
        dropped = torch.zeros_like(ranked, dtype=torch.bool).scatter(1, order, before >= top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    return torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
