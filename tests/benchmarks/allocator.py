"""A training step of a recipe's network with and without what the command line tells glibc.

Each arm is a process of its own, because the allocator is set once; the two take turns. The ratio
is the time without over the time with.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

ROUNDS = 3
STEP = """
import resource, statistics, sys, time
import torch
from torch.nn import functional as F
from zoo.cli.building import from_recipe
from zoo.core.memory import keep_freed_memory

if sys.argv[1] == "with":
    keep_freed_memory()
task, data = from_recipe("convnet_fmnist")
network, optimizer = task.network.train(), task.make_optimizer()
images = torch.randn(256, 1, 28, 28).contiguous(memory_format=torch.channels_last)
labels = torch.arange(256) % 10
times = []
for _ in range(15):
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(network(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.perf_counter() - start)
usage = resource.getrusage(resource.RUSAGE_SELF)
print(statistics.median(times[3:]), usage.ru_minflt, usage.ru_maxrss)
"""


def main() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    times: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(ROUNDS):
        for arm, measured in times.items():
            command = [sys.executable, "-c", STEP, arm]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            seconds, faults, peak = done.stdout.split()[-3:]
            measured.append(float(seconds))
            print(
                f"{arm:8} {1000 * float(seconds):5.0f} ms a step, {int(faults):,} page faults, "
                f"peak {int(peak) / 2**10:.0f} MiB"
            )
    without, with_ = (statistics.median(measured) for measured in times.values())
    print(f"ratio {without / with_:.2f}")


if __name__ == "__main__":
    main()
