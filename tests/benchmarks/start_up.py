"""How long a person waits for the commands that need no torch, and what ``import zoo`` costs."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import zoo": ["-c", "import zoo"],
    "python -m zoo list": ["-m", "zoo", "list"],
    "python -m zoo --help": ["-m", "zoo", "--help"],
    "python -m zoo fit --help": ["-m", "zoo", "fit", "--help"],
}


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(5):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - start)
    floor = statistics.median(times["python -c pass"])
    for name, measured in times.items():
        median = statistics.median(measured)
        ratio = f"{median / floor:.1f} times an empty Python"
        print(f"{name:26} {1000 * median:7.0f} ms, {ratio}")


if __name__ == "__main__":
    main()
