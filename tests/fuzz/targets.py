"""What reads other people's files, each fed with mutations, and what counts as a fault of it."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import shutil
import signal
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml

import zoo
from tests.fuzz.mutations import LONG, VALUES, damage, deep, mutate
from zoo import networks, recipes
from zoo.__main__ import main
from zoo.checkpoints import store
from zoo.errors import UserError
from zoo.tasks import ImageClassifier, LanguageModel

SECONDS = 10  # after which a case hangs
LENGTH = 600  # characters of a message, at most

# What a checkpoint must never make Python do.
FOREIGN = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "socket.connect",
    "socket.getaddrinfo",
    "urllib.Request",
}


class Hang(BaseException):
    """A case took too long; no ``except Exception`` may take it for an answer."""


@dataclass
class Referee:
    """Runs cases one by one and keeps what went wrong.

    Attributes:
        faults: by kind, a line for each case.
        cases: how many ran.
        refused: how many of them were refused, as most should be.
    """

    faults: dict[str, list[str]] = field(default_factory=dict)
    cases: int = 0
    refused: int = 0
    _foreign: list[str] | None = None

    def __post_init__(self) -> None:
        sys.addaudithook(self._watch)

    def _watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._foreign is not None and event in FOREIGN:
            self._foreign.append(f"{event} {arguments!r:.80}")

    def _note(self, kind: str, case: str, detail: str) -> None:
        self.faults.setdefault(kind, []).append(f"{case}: {detail:.300}")

    def judge(self, case: str, call: Callable[[], Any], folder: Path) -> None:
        """Runs a case; ``call`` gives the message of a refusal, or None."""
        self.cases += 1
        before = {p for p in folder.rglob("*") if p.suffix != ".pyc"}
        self._foreign = []
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        message = None
        try:
            message = call()
        except Hang:
            self._note("hang", case, f"over {SECONDS} s")
        except UserError as error:
            message = str(error)
        except Exception as error:
            trace = error.__traceback__
            while trace and trace.tb_next:
                trace = trace.tb_next
            where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
            self._note("traceback", case, f"{type(error).__name__} {error!s:.120} {where[-60:]}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            foreign, self._foreign = self._foreign, None
        for event in foreign:
            self._note("foreign code", case, event)
        if (folder / "canary").exists():
            self._note("foreign code", case, "the canary is there")
            (folder / "canary").unlink()
        if message is not None:
            self.refused += 1
            if len(message) > LENGTH or "\n" in message.strip() or not message.strip():
                self._note("message", case, f"{len(message)} characters: {message}")
            if left := {p for p in folder.rglob("*") if p.suffix != ".pyc"} - before:
                self._note("left behind", case, str(sorted(left)[0]))


@contextlib.contextmanager
def alarmed() -> Iterator[None]:
    """Turns the timer's signal into ``Hang``."""

    def ring(signum: int, frame: Any) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, previous)


def command(*arguments: str) -> str | None:
    """Runs the command line in this process.

    Returns:
        The message of a refusal.

    Raises:
        AssertionError: the exit code is none of 0, 1 and 2, or 2 comes without exactly one error.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(arguments))
        except SystemExit as stop:
            code = int(stop.code or 0)
    errors = [line for line in err.getvalue().splitlines() if ": error: " in line[:40]]
    assert code in (0, 1, 2), f"exit code {code}"
    assert "Traceback" not in err.getvalue()
    assert (code == 2) == (len(errors) == 1), f"exit code {code}, errors {errors!r:.200}"
    return errors[0] if code == 2 else None


STATED = "headline metrics samples proof calibration text seeds run recipe global_step".split()

# -- checkpoints -----------------------------------------------------------------------------------


def shipped(folder: Path) -> list[Path]:
    """Small checkpoints of every kind of network that somebody else may send."""
    torch.manual_seed(0)
    images = {
        "name": "Digits",
        "classes": [str(i) for i in range(10)],
        "mean": [0.5],
        "std": [0.25],
        "input_shape": [1, 8, 8],
        "sha256": {},
    }
    tasks: dict[str, Any] = {
        "resnet": ImageClassifier(
            networks.ResNet(num_classes=10, in_channels=1, layers=[1, 1], width=4)
        ),
        "timm": ImageClassifier(networks.timm_network("test_resnet", False, 10, 1)),
        "transformer": LanguageModel(
            networks.Transformer(vocab_size=5, embed_dim=8, depth=1, num_heads=2, context_length=16)
        ),
    }
    made = []
    for name, task in tasks.items():
        task.data_info = {"name": "a text", "vocabulary": "abcd\n", "sha256": {}}
        if name != "transformer":
            task.data_info = images
        peer = "transformer_shakespeare" if name == "transformer" else "resnet_fmnist"
        stated = store.read_config(store.folder_of(peer))
        kept = {key: stated[key] for key in STATED if key in stated}
        store.save(task, folder / name, {"name": name, **kept})
        made.append(folder / name)
    return made


Case = tuple[str, Callable[[], Any]]


def _try(source: Path) -> None:
    zoo.load(source)


def configs(work: Path, random: Random, count: int) -> Iterator[Case]:
    """Folders whose config.json says something else."""
    for number in range(count):
        origin = random.choice(shipped_in(work))
        folder = work / "foreign"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(origin, folder)
        config = json.loads((origin / "config.json").read_text())
        if number % 8 == 0:
            content, told = damage((origin / "config.json").read_bytes(), random)
            (folder / "config.json").write_bytes(content)
        elif number % 50 == 1:
            told = "nested deeply"
            (folder / "config.json").write_text("[" * 100_000)
        else:
            part = random.choice(("network", "task", "data", "all", "all"))
            if part == "all":
                changed, told = mutate(config, random)
            else:
                changed_part, told = mutate(config[part], random)
                changed = {**config, part: changed_part}
            told = f"{part}: {told}"
            (folder / "config.json").write_text(json.dumps(changed))
        yield f"config {origin.name} {told}", partial(_try, folder)


def arguments(work: Path, random: Random, count: int) -> Iterator[Case]:
    """Networks with arguments that run code, download, or take all memory."""
    hostile: list[dict[str, Any]] = [
        {"checkpoint_path": "canary.bin"},
        {"pretrained": True},
        {"pretrained_cfg": {"url": "http://127.0.0.1:9/x", "hf_hub_id": "a/b"}},
        {"pretrained_cfg_overlay": {"file": "canary.bin"}},
        {"cache_dir": "canary"},
        {"scriptable": True},
        {"features_only": True},
        {"act_layer": "os.system"},
        {"norm_layer": LONG},
        {"block_args": deep(200)},
    ]
    sizes = (10**5, 10**6, 10**9, 2**31, 2**63, 10**30)
    for _ in range(count):
        origin = random.choice(shipped_in(work))
        folder = work / "foreign"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(origin, folder)
        (folder / "canary.bin").write_bytes(poison(folder.parent / "canary"))
        config = json.loads((origin / "config.json").read_text())
        args = config["network"]["args"]
        if origin.name == "timm" and random.random() < 0.7:
            extra = random.choice(hostile)
            args["args"] = extra
            if random.random() < 0.5:
                args |= {"pretrained": True, "name": random.choice((args["name"], "resnet18"))}
            if "checkpoint_path" in extra:
                args["args"] = {"checkpoint_path": str(folder / "canary.bin")}
            told = str(args)[:100]
        else:
            key = random.choice([k for k, v in args.items() if isinstance(v, int | list)])
            size = random.choice(sizes)
            args[key] = [size, size] if isinstance(args[key], list) else size
            told = f"{key} {size}"
        (folder / "config.json").write_text(json.dumps(config))
        yield f"arguments {origin.name} {told}", partial(_try, folder)


def weights(work: Path, random: Random, count: int) -> Iterator[Case]:
    """Weights whose header or bytes are damaged, under a matching sha256."""
    for number in range(count):
        origin = random.choice(shipped_in(work))
        folder = work / "foreign"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(origin, folder)
        content = (origin / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        if number % 3 == 0:
            content, told = damage(content, random)
        elif number % 3 == 1:
            content, told = damage(content[: 8 + length], random)
            content += bytes(1000)
        else:
            changed, told = mutate(header, random)
            text = json.dumps(changed).encode("utf-8", "surrogatepass")
            size = random.choice((len(text), len(text), len(text), 2**63, 0, len(text) - 3))
            content = struct.pack("<Q", size) + text + content[8 + length :]
        (folder / "model.safetensors").write_bytes(content)
        config = json.loads((origin / "config.json").read_text())
        config["weights_sha256"] = store.sha256(folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        yield f"weights {origin.name} {told}", partial(_try, folder)


class Poison:
    """Unpickled, it touches a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


def poison(canary: Path) -> bytes:
    return pickle.dumps(Poison(canary))


def shipped_in(work: Path) -> list[Path]:
    return [work / "origin" / name for name in ("resnet", "timm", "transformer")]


def lightning_files(work: Path) -> list[Path]:
    """A ``.ckpt`` of each small checkpoint, as a fit writes it."""
    files = []
    for folder in shipped_in(work):
        task = zoo.load(folder)
        content: dict[str, Any] = {
            "epoch": 1,
            "global_step": 10,
            "pytorch-lightning_version": "2.6.6",
            "state_dict": task.state_dict(),
            "loops": {},
            "callbacks": {},
            "optimizer_states": [],
            "lr_schedulers": [],
            "hparams_name": "kwargs",
            "hyper_parameters": dict(task.hparams),
        }
        task.on_save_checkpoint(content)
        files.append(folder.with_suffix(".ckpt"))
        torch.save(content, files[-1])
    return files


def tickets(work: Path, random: Random, count: int) -> Iterator[Case]:
    """``.ckpt`` files with other contents, damaged bytes, or code in their pickle."""
    for number in range(count):
        origin = random.choice([path.with_suffix(".ckpt") for path in shipped_in(work)])
        file = work / "foreign.ckpt"
        content = origin.read_bytes()
        if number % 3 == 0:
            content, told = damage(content, random)
            file.write_bytes(content)
        elif number % 3 == 1:
            tree = torch.load(origin, weights_only=True)
            part = random.choice(("hyper_parameters", "data", "all"))
            if part == "all":
                tree, told = mutate(tree, random)
            else:
                tree[part], told = mutate(tree[part], random)
            torch.save(tree, file)
        else:
            told = random.choice(("pickle", "object", "bomb", "zip", "cycle", "doubling", "legacy"))
            _hostile_file(file, origin, told)
        yield f"ckpt {origin.name} {told}", partial(_try, file)


def _hostile_file(file: Path, origin: Path, kind: str) -> None:
    tree = torch.load(origin, weights_only=True)
    canary = file.parent / "canary"
    if kind == "pickle":
        file.write_bytes(poison(canary))
    elif kind == "object":
        torch.save({**tree, "hyper_parameters": Poison(canary)}, file)
    elif kind == "bomb":  # 256 MiB of zeros in 256 KiB
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("archive/data.pkl", "w", force_zip64=True) as entry:
                for _ in range(16):
                    entry.write(bytes(2**24))
            archive.writestr("archive/version", "3\n")
    elif kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("../../outside", "x")
    elif kind == "cycle":
        circle: list[Any] = []
        circle.append(circle)
        torch.save({**tree, "hyper_parameters": {"network": circle}, "data": {"a": circle}}, file)
    elif kind == "doubling":
        value: list[Any] = ["x"]
        for _ in range(40):
            value = [value, value]
        hparams = {**tree["hyper_parameters"], "optimizer_args": {"a": value}}
        torch.save({**tree, "hyper_parameters": hparams, "data": {"classes": value}}, file)
    else:
        torch.save(tree, file, _use_new_zipfile_serialization=False)


def manifests(work: Path, random: Random, count: int) -> Iterator[Case]:
    """The shipped folder with an altered MANIFEST.json, or an altered config.json of one."""
    root = work / "shipped"
    recipes_shipped_folder = recipes.shipped_folder

    def instead(name: str) -> Path:
        return root if name == "checkpoints" else recipes_shipped_folder(name)

    for number in range(count):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for origin in shipped_in(work):
            shutil.copytree(origin, root / origin.name)
        listed = {
            f"{path.parent.name}/{path.name}": store.sha256(path) for path in root.glob("*/*")
        }
        if number % 2:
            changed, told = mutate(listed, random)
            text = json.dumps(changed)
        else:
            config = root / "resnet" / "config.json"
            changed, told = mutate(json.loads(config.read_text()), random)
            config.write_text(json.dumps(changed))
            listed["resnet/config.json"] = store.sha256(config)
            text = json.dumps(listed)
        if random.random() < 0.1:
            text, told = random.choice((("[]", "a list"), ("", "nothing"), ("{", "half")))
        (root / "MANIFEST.json").write_text(text)
        line = random.choice((["verify"], ["list"], ["list", "--json"], ["list", "--markdown"]))

        def call(line: list[str] = line) -> str | None:
            for module in (recipes, store):
                module.shipped_folder = instead
            try:
                return command(*line)
            finally:
                for module in (recipes, store):
                    module.shipped_folder = recipes_shipped_folder

        yield f"manifest {' '.join(line)} {told}", call


# -- what a user writes ----------------------------------------------------------------------------

RECIPE: dict[str, Any] = {
    "about": {"trains": "a small ResNet", "parameters": 1000},
    "model": {
        "class_path": "zoo.tasks.ImageClassifier",
        "init_args": {
            "network": {
                "class_path": "zoo.networks.ResNet",
                "init_args": {
                    "num_classes": 10,
                    "in_channels": 1,
                    "layers": [1, 1],
                    "width": 4,
                    "stem": "small",
                },
            },
            "optimizer": "muon",
            "lr": 0.02,
            "weight_decay": 0.05,
            "optimizer_args": {"betas": [0.9, 0.99]},
            "schedule": "linear",
            "warmup": 0.1,
            "label_smoothing": 0.1,
            "ema_decay": 0.9,
            "channels_last": True,
        },
    },
    "data": {
        "class_path": "zoo.data.Digits",
        "init_args": {"batch_size": 32, "shift": 1},
    },
    "trainer": {
        "max_epochs": 1,
        "callbacks": [{"class_path": "LearningRateMonitor"}],
        "gradient_clip_val": 1.0,
        "precision": "32-true",
    },
    "seed_everything": 0,
}

# What makes a fit short whatever the recipe says; of several machines it would wait for the others.
SHORT = ("--trainer.fast_dev_run=true", "--trainer.devices=1", "--trainer.num_nodes=1")

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{','.join([f'*{old}'] * 9)}]}}\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS = (
    BOMB,
    MERGES,
    "model: &m [*m]\n",
    "model: &m {a: *m}\n",
    "[" * 5000,
    "model: " + "{a: " * 500 + "}" * 500,
    "config: /etc/passwd\n",
    "recipe: /etc/passwd\n",
    "model: /etc/passwd\n",
    "data: /etc/passwd\n",
    "trainer: /etc/passwd\n",
    "trainer: {callbacks: /etc/passwd}\n",
    "1: 2\n",
    "trainer: {1: 2}\n",
    "? [a, b]\n: c\n",
    "model: !!python/object/apply:os.system ['touch canary']\n",
    "model: !!binary aGVsbG8=\n",
    "data: 2020-01-01\n",
    "trainer: 1.5\n",
    "seed_everything: -5\n",
    "print_config: true\n",
    "help: true\n",
    "base: ../../../etc/passwd\n",
    "base: ''\n",
    f"base: {LONG}\n",
    f"{LONG}: 1\n",
    "model: \0\n",
    "---\na: 1\n---\nb: 2\n",
)


def recipe_files(work: Path, random: Random, count: int) -> Iterator[Case]:
    """Recipes with something else in them, fitted for one batch.

    A recipe is code, so that the value that asks for code to run is left out.
    """
    for number in range(count):
        file = work / "mine.yaml"
        if number < len(TEXTS):
            told = TEXTS[number][:40]
            file.write_text(TEXTS[number])
        elif number % 8 == 0:
            content, told = damage(yaml.safe_dump(RECIPE).encode(), random)
            file.write_bytes(content)
        else:
            changed, told = mutate(RECIPE, random, VALUES)
            try:
                file.write_text(yaml.safe_dump(changed))
            except UnicodeEncodeError:
                continue
        line = random.choice((["fit", *SHORT], ["fit", *SHORT], ["audit"]))

        def call(line: list[str] = line) -> str | None:
            return command(line[0], "--recipe", "mine.yaml", *line[1:])

        yield f"recipe {line[0]} {told}", call


def options(work: Path, random: Random, count: int) -> Iterator[Case]:
    """Options with values that nobody expects."""
    fit = (
        "trainer trainer.max_epochs trainer.precision trainer.callbacks trainer.accelerator "
        "trainer.limit_train_batches trainer.gradient_clip_val model model.lr model.optimizer "
        "model.weight_decay model.warmup model.schedule model.optimizer_args model.ema_decay "
        "model.network model.network.width model.network.layers model.network.num_classes "
        "model.network.nothing model.nothing data data.batch_size data.validation_size data.shift "
        "data.sampling_weights data.num_classes data.fallback seed_everything runs name wandb "
        "ckpt_path recipe config save_every_n_steps test_after_fit print_config"
    ).split()
    sample = "temperature top_k top_p max_new_tokens seed prompt class images ckpt_path".split()
    measure = "samples images ood seed ckpt_path ensemble split".split()
    check = "model args input batch-size fail-on explain".split()
    for _ in range(count):
        value = random.choice((*map(_typed, VALUES), "inf", "-inf", "1e5", "[1,", "{", "é"))
        name = random.choice(("fit", "fit", "fit", "sample", "uncertainty", "audit", "predict"))
        origin = shipped_in(work)[2]
        if name == "sample":
            given = ["--recipe", "x", "--ckpt_path", str(origin), "--prompt", "a"]
            line = [*given, "--max_new_tokens", "3", f"--{random.choice(sample)}={value}"]
        elif name == "uncertainty":
            given = ["--recipe", "resnet_digits", "--ckpt_path", str(shipped_in(work)[0])]
            line = [*given, "--images", "4", f"--{random.choice(measure)}={value}"]
            line += ["--samples", "2"] if "--samples" not in line[-1] else []
        elif name == "audit":
            line = ["--model", "timm:test_resnet", f"--{random.choice(check)}={value}"]
        else:
            option = random.choice(fit)
            # Without an end, the fit would be as long as it says.
            short = SHORT if name == "fit" else ()
            line = ["--recipe", "mine.yaml", f"--{option}={value}", *short]
            (work / "mine.yaml").write_text(yaml.safe_dump(RECIPE))

        def call(line: list[str] = [name, *line]) -> str | None:  # noqa: B006
            return command(*line)

        yield f"options {name} {' '.join(line)[:160]}", call


def _typed(value: Any) -> str:
    """As a shell hands it on."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("\0", "")


def data_files(work: Path, random: Random, count: int) -> Iterator[Case]:
    """Folders of images and texts that are damaged, fitted for one batch."""
    from PIL import Image

    buffer = io.BytesIO()
    pixels = Random(0).randbytes(24 * 24 * 3)
    Image.frombytes("RGB", (24, 24), pixels).save(buffer, "PNG")
    png, buffer = buffer.getvalue(), io.BytesIO()
    Image.frombytes("RGB", (24, 24), pixels).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    for number in range(count):
        root = work / "photos"
        shutil.rmtree(root, ignore_errors=True)
        (work / "text.txt").unlink(missing_ok=True)
        if number % 3 == 0:
            content, told = damage(b"to be or not to be, that is the question\n" * 40, random)
            (work / "text.txt").write_bytes(content)
            recipe = {
                "model": {
                    "class_path": "zoo.tasks.LanguageModel",
                    "init_args": {
                        "network": {
                            "class_path": "zoo.networks.Transformer",
                            "init_args": {
                                "vocab_size": random.choice((17, 18, 20, 65)),
                                "embed_dim": 8,
                                "depth": 1,
                                "num_heads": 2,
                                "context_length": 16,
                            },
                        }
                    },
                },
                "data": {
                    "class_path": "zoo.data.TextFile",
                    "init_args": {"path": "text.txt", "context_length": 16, "batch_size": 4},
                },
            }
        else:
            for name in ("cat", "dog"):
                (root / name).mkdir(parents=True)
                for index in range(4):
                    (root / name / f"{index}.png").write_bytes(png if index % 2 else jpeg)
            told = _spoil_folder(root, random, png)
            recipe = {
                "model": {
                    "class_path": "zoo.tasks.ImageClassifier",
                    "init_args": {
                        "network": {
                            "class_path": "zoo.networks.ResNet",
                            "init_args": {"num_classes": 2, "layers": [1, 1], "width": 4},
                        }
                    },
                },
                "data": {
                    "class_path": "zoo.data.ImageFolder",
                    "init_args": {
                        "folder": "photos",
                        "image_size": 16,
                        "batch_size": 4,
                        "workers": 0,
                        "corrupt": random.choice(("error", "skip")),
                        "test": random.choice((0.0, 0.3)),
                    },
                },
            }
        (work / "mine.yaml").write_text(yaml.safe_dump(recipe))
        yield f"data {told}", lambda: command("fit", "--recipe", "mine.yaml", *SHORT)


def _spoil_folder(root: Path, random: Random, png: bytes) -> str:
    told = []
    for _ in range(random.choice((1, 2))):
        kind = random.choice(
            ("damage", "damage", "folder", "hidden", "class", "bytes", "link", "format", "none")
        )
        file = root / random.choice(("cat", "dog")) / f"{random.randrange(4)}.png"
        told.append(f"{kind} {file.name}")
        if kind == "damage":
            file.write_bytes(damage(png, random)[0])
        elif kind == "folder":
            file.unlink(missing_ok=True)
            file.mkdir(exist_ok=True)
        elif kind == "hidden":
            inner = file.parent / random.choice((".ipynb_checkpoints", "@eaDir"))
            inner.mkdir(exist_ok=True)
            (inner / "copy.png").write_bytes(png)
        elif kind == "class":
            name = random.choice((b"\xff\xfe", b"a\nb", b"caf\xc3\xa9", b"x" * 200))
            inner = Path(str(root)) / name.decode("utf-8", "surrogateescape")
            inner.mkdir(exist_ok=True)
            for index in range(4):
                (inner / f"{index}.png").write_bytes(png)
        elif kind == "bytes":
            name = b"\xff%d.png" % random.randrange(9)
            (file.parent / name.decode("utf-8", "surrogateescape")).write_bytes(png)
        elif kind == "link":
            (file.parent / "gone.png").unlink(missing_ok=True)
            (file.parent / "gone.png").symlink_to("nowhere.png")
        elif kind == "format":
            (file.parent / "photo.heic").write_bytes(png)
        else:
            shutil.rmtree(root / "dog", ignore_errors=True)
            (root / "dog").mkdir()
            (root / "cat").mkdir(exist_ok=True)
            break
    return ", ".join(told)


# How many cases of each, ten minutes on one thread in all.
TARGETS: dict[str, tuple[Callable[[Path, Random, int], Iterator[Case]], int]] = {
    "configs": (configs, 1000),
    "arguments": (arguments, 200),
    "weights": (weights, 450),
    "tickets": (tickets, 450),
    "manifests": (manifests, 250),
    "recipes": (recipe_files, 400),
    "options": (options, 350),
    "data": (data_files, 200),
}
