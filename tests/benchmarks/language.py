"""The small language model against its peers, in turns, in float32.

A training step of ``gpt_shakespeare``'s network (forward, backward, AdamW) against GPT-2 of
``transformers`` of the same size; the last 8 of 256 characters of one text and of 16 at once by
``transformer_shakespeare_long``'s network, with its plain cache against recomputing, and with the
joined weights of ``zoo.networks.decoding`` against the plain cache; all of one text, with the
cache as ``generate`` reads it; our RMSNorm against LayerNorm and torch's RMSNorm, forward and
backward, by width. Ratios are the other's time over ours. Peak memory is what is allocated at
once, as torch's profiler counts it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from turns import compare, print_peaks

from zoo.cli.building import from_recipe
from zoo.networks import Transformer, generate
from zoo.networks.decoding import Reader
from zoo.networks.fast import RMSNorm

VOCABULARY, WIDTH, DEPTH, HEADS = 65, 128, 4, 4
LAST = 8  # characters, of a context


def training_step(network: nn.Module, batch: int, context: int) -> Callable[[], None]:
    torch.manual_seed(0)
    text = torch.randint(VOCABULARY, (batch, context + 1))
    tokens, targets = text[:, :-1].contiguous(), text[:, 1:].flatten()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def step() -> None:
        output = network(tokens)
        logits = output if isinstance(output, torch.Tensor) else output.logits
        F.cross_entropy(logits.flatten(0, 1), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare_training(batch: int, context: int) -> None:
    ours = Transformer(
        VOCABULARY,
        context,
        WIDTH,
        DEPTH,
        HEADS,
        norm="layernorm",
        positions="learned",
        mlp="gelu_tanh",
        bias=True,
    )
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=context,
        n_embd=WIDTH,
        n_layer=DEPTH,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=None,  # its own vocabulary's lie beyond ours
        eos_token_id=None,
    )
    peer = transformers.GPT2LMHeadModel(config)
    sizes = {sum(p.numel() for p in network.parameters()) for network in (ours, peer)}
    assert len(sizes) == 1, sizes
    steps = {
        "transformers": training_step(peer.train(), batch, context),
        "ours": training_step(ours.train(), batch, context),
    }
    compare(f"training step, {batch} x {context}", steps, 50)
    print_peaks(steps)


def compare_last(network: Any, texts: int) -> None:
    torch.manual_seed(0)
    context = network.context_length
    text = torch.randint(VOCABULARY, (texts, context))

    def last(read: Callable[[torch.Tensor, Any], torch.Tensor] | None) -> Callable[[], Any]:
        # Several in a row, as text is written: the first one finds the weights out of the
        # processor's cache, where another way left something else.
        cache = network.make_cache()
        with torch.inference_mode():
            network(text[:, :-LAST], cache)

        @torch.inference_mode()
        def call() -> torch.Tensor:
            cache.seen = context - LAST
            for seen in range(context - LAST, context):
                if read is None:
                    logits = network(text[:, : seen + 1])
                else:
                    logits = read(text[:, seen : seen + 1], cache)
            return logits[:, -1]

        return call

    recomputing, plain, joined = last(None), last(network), last(Reader(network))
    assert torch.allclose(plain(), recomputing(), atol=1e-4)
    assert torch.allclose(plain(), joined(), atol=1e-4)
    what = f"the last {LAST} of {context} characters of {texts}"
    for ways in (
        {"recomputing": recomputing, "plain cache": plain},
        {"plain cache": plain, "joined weights": joined},
    ):
        compare(what, ways, 12)
        print_peaks(ways)


def compare_generation(network: Any) -> None:
    context, prompt = network.context_length, torch.zeros(1, 1, dtype=torch.int64)

    def write(cached: bool) -> Callable[[], list[torch.Tensor]]:
        return lambda: list(generate(network, prompt, context - 1, seed=0, cached=cached))

    ways = {"recomputing": write(False), "with the cache": write(True)}
    compare(f"generating {context - 1} characters", ways, 3)
    print_peaks(ways)


def compare_norms(width: int) -> None:
    ours = RMSNorm(width, 1e-5)
    peers = {"LayerNorm": nn.LayerNorm(width, 1e-5), "torch's RMSNorm": nn.RMSNorm(width, 1e-5)}
    x = torch.randn(2**20 // width, width, requires_grad=True)

    def both_ways(norm: nn.Module) -> Callable[[], None]:
        return lambda: norm(x).sum().backward()

    for who, peer in peers.items():
        ways = {who: both_ways(peer), "our RMSNorm": both_ways(ours)}
        compare(f"norm of {width}, {2**20 // width} rows", ways, 30)


def main() -> None:
    compare_training(12, 64)
    compare_training(16, 256)
    task, _ = from_recipe("transformer_shakespeare_long")
    network = task.network.eval()
    compare_last(network, 1)
    compare_last(network, 16)
    compare_generation(network)
    for width in (64, 128, 256, 512, 1024, 4096):
        compare_norms(width)


if __name__ == "__main__":
    main()
