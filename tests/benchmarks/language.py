"""The small language model against its peers, in turns, in float32.

A training step of ``gpt_shakespeare``'s network (forward, backward, AdamW) against GPT-2 of
``transformers`` of the same size; generation at context 256 with the cache against recomputing
every token; RMSNorm against LayerNorm, forward and backward, by width. Ratios are the other's time
over ours. Peak memory is what is allocated at once, as torch's profiler counts it on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from turns import medians, peak_bytes

from zoo.networks import Transformer, generate

VOCABULARY, WIDTH, DEPTH, HEADS = 65, 128, 4, 4
MIB = 2**20


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
    )
    peer = transformers.GPT2LMHeadModel(config)
    sizes = {sum(p.numel() for p in network.parameters()) for network in (ours, peer)}
    assert len(sizes) == 1, sizes
    steps = {
        "ours": training_step(ours.train(), batch, context),
        "transformers": training_step(peer.train(), batch, context),
    }
    mine, theirs = medians(steps, 100)
    memory = [peak_bytes(step) / MIB for step in steps.values()]
    print(
        f"training step, {batch} x {context}: ours {1000 * mine:.1f} ms, transformers "
        f"{1000 * theirs:.1f} ms, ratio {theirs / mine:.2f}, peak {memory[0]:.1f} MiB against "
        f"{memory[1]:.1f}",
        flush=True,
    )


def compare_generation(context: int) -> None:
    torch.manual_seed(0)
    network = Transformer(VOCABULARY, context, WIDTH, DEPTH, HEADS).eval()
    prompt = torch.zeros(1, 1, dtype=torch.int64)

    def write(cached: bool) -> Callable[[], None]:
        return lambda: all(
            True for _ in generate(network, prompt, context - 1, seed=0, cached=cached)
        )

    ways = {"cache": write(True), "recomputing": write(False)}
    fast, slow = medians(ways, 3)
    memory = [peak_bytes(way) / MIB for way in ways.values()]
    print(
        f"generating {context - 1} tokens: with the cache {1000 * fast:.0f} ms, recomputing "
        f"{1000 * slow:.0f} ms, ratio {slow / fast:.2f}, peak {memory[0]:.1f} MiB against "
        f"{memory[1]:.1f}",
        flush=True,
    )


def compare_norms(width: int) -> None:
    norms = {"rmsnorm": nn.RMSNorm(width, 1e-5), "layernorm": nn.LayerNorm(width, 1e-5)}
    x = torch.randn(2**20 // width, width, requires_grad=True)

    def both_ways(norm: nn.Module) -> Callable[[], None]:
        return lambda: norm(x).sum().backward()

    rms, layer = medians({who: both_ways(norm) for who, norm in norms.items()}, 30)
    print(
        f"norm of {width}, {2**20 // width} rows: RMSNorm {1000 * rms:.2f} ms, LayerNorm "
        f"{1000 * layer:.2f} ms, ratio {layer / rms:.2f}",
        flush=True,
    )


def main() -> None:
    compare_training(12, 64)
    compare_training(16, 256)
    compare_generation(256)
    for width in (64, 128, 256, 512, 1024, 4096):
        compare_norms(width)


if __name__ == "__main__":
    main()
