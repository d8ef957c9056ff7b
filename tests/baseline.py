"""Holds this checkout against another commit: the same numbers to the last bit, at the same speed.

    python tests/baseline.py --against v0.1.0
    python tests/baseline.py --against HEAD --only training speed --recipes vit_digits gan_digits

The other commit is checked out next to this one, into a temporary worktree, and the same probes run
in both, each in processes of its own:

- ``training``: 20 steps of every recipe at seed 0: what is logged of each step and of a validation
  at the end, the parameters, the optimizers' groups, and the weights that come out.
- ``checkpoints``: outputs of all shipped weights for real images and real text, and what they make.
- ``audit``: findings on the recipes' networks and on other people's, and ``mc_dropout`` of three.
- ``speed``: a training step of every recipe, and start-up with what it imports.

One line a comparison: ``equal``, or the first place where the two differ. Times are reported as a
ratio, this checkout over the other commit; on a busy machine those of equal trees differ by several
per cent. Exit code 1 where anything but a time differs.

A probe finds what it needs under each name that it has had (``_find``), so that it runs in both
trees. Parameters that are renamed on purpose belong in ``RENAMED``. Needs the real data in
``ZOO_DATA``; recipes for data that are not there are named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RENAMED: dict[str, str] = {}  # a parameter's name in the other commit -> its name in this checkout

WITHOUT_DATA = ("imagefolder", "cifar10")  # how the names of recipes end whose data we do not have
STEPS = 20
BATCH = {"32-true": 16, "bf16-mixed": 4}  # most processors only imitate bfloat16
TIMED_BATCH = 16
CONTEXT = 64  # characters of a window, of which a batch has a quarter as many as of images
ROUNDS, START_UPS = 11, 3  # turns of each tree, for a training step and for start-up
ROUND_SECONDS = 0.1  # of training steps, a turn
MARKED = 1.03  # a ratio above it is pointed at

# Other people's models for the audit: their arguments, and the side of the square images.
STRANGERS: dict[str, tuple[dict[str, Any], int]] = {
    "torchvision:densenet121": ({"drop_rate": 0.2}, 64),
    "torchvision:deeplabv3_resnet50": ({"weights": None, "weights_backbone": None}, 64),
    "torchvision:resnet50": ({}, 64),
    "timm:resnet18": ({"drop_rate": 0.2}, 64),
    "timm:vit_tiny_patch16_224": ({}, 224),
    "timm:efficientnet_b0": ({}, 64),
}
START_UP = {
    "python -c 'import zoo'": ["-c", "import zoo"],
    "python -m zoo list": ["-m", "zoo", "list"],
    "python -m zoo fit --help": ["-m", "zoo", "fit", "--help"],
}
IMPORTED = """
import runpy, sys
before = set(sys.modules)
flag, what, *arguments = sys.argv[1:]
sys.argv[1:] = arguments
try:
    exec(what) if flag == "-c" else runpy.run_module(what, run_name="__main__")
except SystemExit:
    pass
added = {name.partition(".")[0] for name in set(sys.modules) - before}
print("\\n" + " ".join(sorted(added - set(sys.stdlib_module_names) - {"zoo"})))
"""


# -- probes: run in either tree --------------------------------------------------------------------


def _find(*places: str) -> Any:
    """The first of some ``module:name`` that can be imported, the newest place first."""
    reasons = []
    for place in places:
        module, _, name = place.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            reasons.append(f"{place} ({error})")
    raise ImportError(f"found in none of its places: {', '.join(reasons)}")


def _recipe(name: str) -> dict[str, Any]:
    return dict(_find("zoo.recipes:resolve")(name))


def _build(name: str, batch_size: int | None = None, *overrides: str) -> tuple[Any, Any]:
    """Task and data module of a recipe, never on stand-in data, with weights of seed 0."""
    from lightning.pytorch import seed_everything

    build = _find("zoo.cli.building:from_recipe", "zoo.cli:build")
    given, settings = list(overrides), _recipe(name)["data"].get("init_args", {})
    if batch_size is not None and "context_length" in settings:
        batch_size //= 4
        given += ["--data.context_length", str(CONTEXT)]
    if batch_size is not None:
        given += ["--data.batch_size", str(batch_size)]
    if "fallback" in settings:
        given += ["--data.fallback", "null"]
    seed_everything(0, verbose=False)
    task, data = build(name, given)
    return task, data


def _trainer(recipe: dict[str, Any], **settings: Any) -> Any:
    """A bare Trainer on the CPU that clips gradients as a recipe does."""
    from lightning.pytorch import Trainer

    return Trainer(
        accelerator="cpu",
        devices=1,
        gradient_clip_val=recipe["trainer"].get("gradient_clip_val"),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )


def _data_info(task: Any) -> dict[str, Any]:
    """What a loaded task remembers of its data."""
    return dict(task.data_info if hasattr(task, "data_info") else task.data)


def _sha256(tensor: Any) -> str:
    """Of the shape, the type and the bytes."""
    plain = tensor.detach().contiguous()
    head = f"{list(plain.shape)} {plain.dtype} ".encode()
    return hashlib.sha256(head + plain.numpy().tobytes()).hexdigest()


def _rows(tensor: Any) -> list[Any]:
    """Each row's numbers; of long rows the sum and the checksum."""
    rows = tensor.detach().flatten(1)
    if rows.shape[1] <= 16:
        return list(rows.tolist())
    return [{"sum": float(row.double().sum()), "sha256": _sha256(row)} for row in rows]


def probe_training(recipes: list[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name in recipes:
        for precision in BATCH:
            if precision in ("32-true", _recipe(name)["trainer"].get("precision")):
                yield f"{name}, {precision}", lambda n=name, p=precision: _train(n, p)


def _train(name: str, precision: str) -> dict[str, Any]:
    from lightning.pytorch import Callback

    metrics: list[dict[str, float]] = []
    groups: list[Any] = []

    class Record(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            groups.extend(_groups(pl_module, optimizer) for optimizer in trainer.optimizers)

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            metrics.append({k: float(v) for k, v in sorted(trainer.callback_metrics.items())})

    task, data = _build(name, BATCH[precision])
    parameters = [[key, list(value.shape)] for key, value in task.network.named_parameters()]
    # An epoch has a single batch: so what a task logs of an epoch is what it knows of a step,
    # whatever it calls it, and an epoch of a GAN is a step of its generator as well.
    trainer = _trainer(
        _recipe(name),
        max_epochs=STEPS,
        limit_train_batches=1,
        limit_val_batches=int(precision == "32-true"),
        check_val_every_n_epoch=STEPS,
        log_every_n_steps=1,
        precision=precision,
        callbacks=[Record()],
    )
    trainer.fit(task, datamodule=data)
    assert trainer.global_step == STEPS, f"{trainer.global_step} steps in place of {STEPS}"
    weights = {key: _sha256(value) for key, value in task.network.state_dict().items()}
    return {"metrics": metrics, "parameters": parameters, "groups": groups, "weights": weights}


def _groups(task: Any, optimizer: Any) -> Any:
    names = {id(parameter): name for name, parameter in task.network.named_parameters()}
    plain = (bool, int, float, str, list, tuple, type(None))
    return {
        "class": type(optimizer).__name__,
        "groups": [
            {
                "parameters": [names[id(parameter)] for parameter in group["params"]],
                "options": {
                    key: value if isinstance(value, plain) else type(value).__name__
                    for key, value in sorted(group.items())
                    if key != "params"
                },
            }
            for group in optimizer.param_groups
        ],
    }


def probe_checkpoints(recipes: list[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    for config in sorted(Path("checkpoints").glob("*/config.json")):
        if config.parent.name in recipes:
            yield config.parent.name, lambda n=config.parent.name: _outputs(n)


def _outputs(name: str) -> dict[str, Any]:
    import torch

    import zoo

    task: Any = zoo.load(name)
    info = _data_info(task)
    with torch.no_grad():
        if hasattr(task, "sample"):
            labels = [str(info["classes"][index % len(info["classes"])]) for index in range(64)]
            made = {"samples": _rows(task.sample(labels, seed=0))}
        elif hasattr(task, "stream"):
            made = _language_outputs(task, info["vocabulary"])
        else:
            from torchvision.datasets import FashionMNIST

            images = FashionMNIST(os.environ["ZOO_DATA"], train=False).data[:64, None]
            mean, std = (torch.tensor(info[key])[:, None, None] for key in ("mean", "std"))
            made = {"logits": _rows(task((images / 255 - mean) / std))}
    return {**made, "data": info}


def _language_outputs(task: Any, vocabulary: str) -> dict[str, Any]:
    import torch

    generate = _find("zoo.networks:generate", "zoo.networks.generation:generate")
    context = task.network.context_length
    text = Path(os.environ["ZOO_DATA"], "tinyshakespeare/input.txt").read_text()
    tokens = torch.tensor([vocabulary.index(character) for character in text[-64 * context :]])
    made = {"logits": _rows(task(tokens.view(64, context)))}
    prompt = tokens[:80].view(2, 40)
    for title, options in {
        "cached": {"temperature": 0.8},
        "not cached": {"temperature": 0.8, "cached": False},
        "top": {"top_k": 20, "top_p": 0.9},
    }.items():  # longer than the context, so that its older half is forgotten once
        text = torch.stack(list(generate(task.network, prompt, context, seed=0, **options)), 1)
        made[title] = ["".join(vocabulary[token] for token in row) for row in text.tolist()]
    made["text"] = [task.generate("ROMEO:", 100, seed=0)]
    return made


def probe_audit(recipes: list[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name in recipes:
        yield f"findings on {name}", lambda n=name: _findings("--recipe", n)
    for name, (arguments, side) in STRANGERS.items():
        options = ("--args", json.dumps(arguments), "--input", f"2,3,{side},{side}")
        yield (
            f"findings on {name}",
            lambda n=name, options=options: _findings("--model", n, *options),
        )
    for name in ("torchvision:densenet121", "timm:resnet18", "zoo:vit_fmnist"):
        yield f"mc_dropout of {name}", lambda n=name: _uncertainty(n)


def _findings(*arguments: str) -> list[Any]:
    from zoo.__main__ import main

    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        code = main(["audit", *arguments, "--json", "--fail-on", "never"])
    assert code == 0, errors.getvalue()
    found = json.loads(printed.getvalue())["findings"]
    return sorted([each["rule"], each["severity"], each["module"]] for each in found)


def _uncertainty(name: str) -> dict[str, Any]:
    import timm
    import torch
    from torchvision import models

    import zoo

    origin, _, word = name.partition(":")
    torch.manual_seed(0)
    if origin == "zoo":
        task, data = _build(word)
        model, x = task.network, data.example_input(4)
    else:
        make = timm.create_model if origin == "timm" else models.get_model
        arguments, side = STRANGERS[name]
        model, x = make(word, **arguments), torch.randn(4, 3, side, side)
    found = zoo.mc_dropout(model, x, samples=5, seed=0)
    return {"mean": _rows(found.mean), "variance": _rows(found.variance)}


def probe_speed(recipes: list[str]) -> None:
    """Trains the recipes one after the other; each line on stdin asks for a turn of the next.

    What is timed is between the hooks around a batch, which was loaded and augmented before:
    forward, backward and the optimizer's step. A turn's answer is its fastest step in seconds of
    the processor's time, which others on the machine lengthen less than a clock's.
    """
    from lightning.pytorch import Callback

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a fit prints is no answer

    class Turns(Callback):
        def __init__(self) -> None:
            self.taken, self.times, self.start = 0, list[float](), 0.0

        def on_train_batch_start(self, *_: Any) -> None:
            self.start = time.process_time()

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.times.append(time.process_time() - self.start)
            if sum(self.times) >= ROUND_SECONDS:
                self.answer(min(self.times))
                trainer.should_stop = self.taken > ROUNDS

        def answer(self, seconds: float) -> None:
            print(seconds, file=answers, flush=True)
            self.taken, self.times = self.taken + 1, []
            if self.taken <= ROUNDS:  # the first turn warms up
                sys.stdin.readline()

    for name in recipes:
        sys.stdin.readline()
        turns = Turns()
        try:
            # The average is taken after the step, and its statistics at the end.
            task, data = _build(name, TIMED_BATCH, "--model.ema_decay", "null")
            trainer = _trainer(
                _recipe(name), max_steps=10**6, limit_val_batches=0, callbacks=[turns]
            )
            trainer.fit(task, datamodule=data)
        except Exception:
            traceback.print_exc()
            while turns.taken <= ROUNDS:
                turns.answer(math.nan)


PROBES = {"training": probe_training, "checkpoints": probe_checkpoints, "audit": probe_audit}
PARTS = (*PROBES, "speed")


def run_probe(part: str, recipes: list[str], to: Path) -> None:
    """Writes what a part's probes give in the tree that is the current folder, as JSON."""
    import zoo

    assert Path(zoo.__file__).is_relative_to(Path.cwd()), f"{zoo.__file__} is of another tree"
    if part == "speed":
        probe_speed(recipes)
        return
    results: dict[str, Any] = {}
    for title, probe in PROBES[part](recipes):
        try:
            results[title] = probe()
        except Exception:  # the other probes' answers count all the same
            results[title] = {"failed": traceback.format_exc(limit=-3).strip()}
    to.write_text(json.dumps(results), encoding="utf-8")


# -- comparing: run once ---------------------------------------------------------------------------


def environment(tree: Path) -> dict[str, str]:
    """One thread, the tree's own code, and glibc's settings as ``zoo fit`` has them."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    freed = {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
        "MALLOC_ARENA_MAX": "1",
    }
    return {"OMP_NUM_THREADS": "1", **freed, **inherited, "PYTHONPATH": str(tree)}


def start(tree: Path, part: str, recipes: list[str], to: Path, **pipes: Any) -> Any:
    """This very file as a process in a tree; ``-P`` keeps its own folder off the path."""
    command = [sys.executable, "-P", __file__, "--probe", part, "--to", to, "--recipes", *recipes]
    return subprocess.Popen(command, cwd=tree, env=environment(tree), text=True, **pipes)


def compare_part(part: str, trees: list[Path], recipes: list[str], folder: Path) -> bool:
    """Runs a part's probes in both trees side by side, and prints a line a result."""
    files = [folder / f"{part}-{index}.json" for index in range(2)]
    logs = [file.with_suffix(".log").open("w+") for file in files]
    running = [
        start(tree, part, recipes, file, stdout=log, stderr=log)
        for tree, file, log in zip(trees, files, logs, strict=True)
    ]
    for process, log in zip(running, logs, strict=True):
        if process.wait():
            log.seek(0)
            print(f"{part}: the probe itself failed:\n{log.read()[-3000:]}")
            return False
    there, here = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    there, equal = _renamed(there), True
    for title in dict.fromkeys([*there, *here]):
        for section, *both in _sections(there.get(title), here.get(title)):
            equal &= compare(f"{part}: {title}{section}", *both)
    return equal


def _renamed(value: Any) -> Any:
    """The same with the names that parameters have in this checkout."""
    if isinstance(value, dict):
        return {RENAMED.get(key, key): _renamed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_renamed(each) for each in value]
    return RENAMED.get(value, value) if isinstance(value, str) else value


def _sections(there: Any, here: Any) -> Iterator[tuple[str, Any, Any]]:
    """What is to be compared in a line of its own: a mapping's values, or all of a result."""
    whole = (isinstance(each, dict) and "failed" not in each for each in (there, here))
    if not all(whole):
        yield "", there, here
        return
    for key in dict.fromkeys([*there, *here]):
        yield f", {key}", there.get(key), here.get(key)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        pairs: Iterable[Any] = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in pairs:
            yield from _leaves(each, (*path, str(key)))
    else:
        yield "/".join(path), value


def compare(title: str, there: Any, here: Any) -> bool:
    """Prints whether two results are the same, and else the first place where they are not."""
    for tree, result in (("there", there), ("here", here)):
        if result is None or (isinstance(result, dict) and "failed" in result):
            reason = "is missing" if result is None else f"failed\n{result['failed']}"
            print(f"{title}: DIFFERS: {tree} it {reason}", flush=True)
            return False
    first, second = dict(_leaves(there)), dict(_leaves(here))
    for name in dict.fromkeys([*first, *second]):
        old, new = (repr(each[name]) if name in each else "nothing" for each in (first, second))
        if old != new:
            print(f"{title}: DIFFERS at {name}: {old} there, {new} here", flush=True)
            return False
    print(f"{title}: equal", flush=True)
    return True


def compare_speed(trees: list[Path], recipes: list[str], folder: Path) -> bool:
    """Training steps and start-up, in turns; only what is imported may make it fail."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    logs = [(folder / f"speed-{index}.log").open("w+") for index in range(2)]
    both = [
        start(tree, "speed", recipes, folder, stderr=log, **pipes)
        for tree, log in zip(trees, logs, strict=True)
    ]

    def turn(process: Any) -> float:
        process.stdin.write("\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            log = logs[both.index(process)]
            log.seek(0)
            raise SystemExit(f"speed: the probe itself failed:\n{log.read()[-3000:]}")
        return float(answer)

    equal = True
    try:
        for name in recipes:
            times = [[turn(process) for process in both] for _ in range(ROUNDS + 1)]
            equal &= print_ratio(f"training step of {name}", times[1:])
    finally:
        for process in both:
            process.kill()
            process.wait()
    for title, arguments in START_UP.items():
        # The first run of each also compiles the modules.
        sets = [_run(tree, "-c", IMPORTED, *arguments).splitlines()[-1].split() for tree in trees]
        equal &= compare(f"speed: {title} imports", *({"modules": modules} for modules in sets))
        times = []
        for _ in range(START_UPS):
            times.append([])
            for tree in trees:
                begin = time.perf_counter()
                _run(tree, *arguments)
                times[-1].append(time.perf_counter() - begin)
        equal &= print_ratio(title, times)
    return equal


def _run(tree: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=environment(tree),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed in {tree}:\n{done.stderr[-3000:]}")
    return done.stdout


def print_ratio(what: str, times: list[list[float]]) -> bool:
    """Prints the median of the turns' ratios and the fastest turns; whether there are any."""
    if not all(math.isfinite(seconds) for turn in times for seconds in turn):
        print(f"speed: {what}: DIFFERS: it failed (--only training says how)", flush=True)
        return False
    ratio = statistics.median(here / there for there, here in times)
    there, here = (1000 * min(column) for column in zip(*times, strict=True))
    mark = "  <-- slower" if ratio > MARKED else ""
    print(
        f"speed: {what}: ratio {ratio:.3f}, fastest {there:.1f} ms there and {here:.1f} ms here, "
        f"ratio {here / there:.3f}{mark}",
        flush=True,
    )
    return True


def recipes_of(tree: Path) -> set[str]:
    folder = tree / "recipes"
    return {file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")}


def compare_trees(trees: list[Path], parts: list[str], wanted: list[str] | None) -> bool:
    """Compares the parts of two trees, the other one first; whether all but times is equal."""
    there, here = map(recipes_of, trees)
    if unknown := set(wanted or ()) - (there | here):
        raise SystemExit(f"no such recipe: {', '.join(sorted(unknown))}")
    chosen = sorted((there & here) & set(wanted or there))
    if lone := sorted((there ^ here) & set(wanted or there | here)):
        print(f"skipped, in one of the trees only: {', '.join(lone)}")
    trained = [name for name in chosen if not name.endswith(WITHOUT_DATA)]
    if set(chosen) - set(trained) and {"training", "speed"} & set(parts):
        print(f"not trained, without data: {', '.join(sorted(set(chosen) - set(trained)))}")
    equal = True
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            if part == "speed":
                equal &= compare_speed(trees, trained, Path(folder))
            else:
                recipes = trained if part == "training" else chosen
                equal &= compare_part(part, trees, recipes, Path(folder))
    return equal


@contextlib.contextmanager
def worktree(ref: str) -> Iterator[Path]:
    """Another commit's files, for a while."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve() / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), ref], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--against", metavar="GITREF", help="the commit to compare with")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="these alone")
    parser.add_argument("--probe", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        run_probe(options.probe, options.recipes or [], options.to)
        return 0
    if not options.against:
        parser.error("give --against GITREF")
    if "ZOO_DATA" not in os.environ:
        parser.error("set ZOO_DATA to a folder with FashionMNIST and tinyshakespeare")
    with worktree(options.against) as tree:
        equal = compare_trees([tree, ROOT], options.only or list(PARTS), options.recipes)
    print("all equal" if equal else "NOT EQUAL")
    return int(not equal)


if __name__ == "__main__":
    sys.exit(main())
