"""What docs/extending.md says, done from a package outside the zoo: a toy of each kind, in use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import zoo
from zoo import networks, registry
from zoo.diagnostics.rules.base import RULES

FILES = {
    "network.py": '''
from torch import Tensor, nn

from zoo.networks.base import ImageNetwork


class Flat(ImageNetwork):
    """A linear classifier of pixels, with BatchNorm on its hidden units."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1, image_size: int = 8) -> None:
        super().__init__()
        self.num_features, self.num_classes, self.num_stages = 16, num_classes, 1
        self.hidden = nn.Linear(in_channels * image_size**2, 16, bias=False)
        self.norm = nn.BatchNorm1d(16)
        self.fc: nn.Module = self.make_classifier(num_classes)

    def forward_stages(self, x: Tensor):
        yield self.norm(self.hidden(x.flatten(1)))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return features if pre_logits else self.fc(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def group_matcher(self, coarse: bool = False):
        return {"stem": r"^(?:hidden|norm)[.]"}
''',
    "task.py": '''
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.tasks.base import Task


class Guess(Task):
    """Guesses the label as a number, by squared error."""

    def __init__(self, network: nn.Module, lr: float = 0.01, scale: float = 10.0) -> None:
        super().__init__(
            network,
            optimizer="adamw",
            lr=lr,
            momentum=0.9,
            optimizer_args=None,
            schedule="constant",
            warmup=0.0,
            ema_decay=None,
        )
        self.scale = scale

    def golden(self) -> Tensor:
        return self(torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.mse_loss(self(batch[0])[:, 0], batch[1] / self.scale)

    def training_values(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"loss": self.loss(batch)}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), on_epoch=True)
''',
    "card.py": """
from zoo.checkpoints.card import Card


class GuessCard(Card):
    def usage(self):
        return [f'model = zoo.load("{self.name}")']

    def headline(self):
        return f"{self.metrics['val/loss']:.4f}"

    def measured(self):
        return [f"largest guess: {self.config['largest']:.3f}"]

    def input_and_output(self):
        return "Images, numbers."

    def limits(self):
        return "It guesses."

    def amount(self):
        return f"training images: {self.samples['train']:,}"


def measure(task, data, stated):
    from zoo.evaluation.audit import audit_counts

    largest = float(task(data.example_input()).max())
    return {**stated, "largest": largest, "proof": {"audit": audit_counts(task, data)}}
""",
    "data.py": '''
from zoo.data.digits import Digits


class Dark(Digits):
    """The digits at half their brightness."""

    name = "Dark"

    def read(self, train: bool):
        images, labels = super().read(train)
        return images // 2, labels
''',
    "command.py": """
from zoo.core.options import Parser


def main(arguments):
    parser = Parser("count", "Count the parameters of weights.")
    parser.add_argument("weights")
    options = parser.parse_args(arguments)
    from zoo.checkpoints.load import load

    print(sum(p.numel() for p in load(options.weights).network.parameters()))
    return 0
""",
    "rule.py": '''
from zoo.diagnostics.rules.base import Finding, rule


@rule(
    "too-shallow",
    "info",
    "A model of one linear layer learns no features.",
    source="Minsky & Papert 1969, chapter 0",
    fix="a hidden layer",
    bad="model, inputs = nn.Linear(8, 2), (torch.randn(4, 8),)",
    good="""
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        inputs = (torch.randn(4, 8),)
    """,
)
def too_shallow(subject):
    linear = [node for node in subject.training.nodes if node.op == "linear"]
    if len(linear) == 1:
        yield Finding(linear[0].module, "one linear layer", source=linear[0].source)
''',
    "guess_dark.yaml": """
# Guesses how many there are, on dark digits.
about:
  trains: a toy
model:
  class_path: toy.task.Guess
  init_args:
    network:
      class_path: toy.network.Flat
      init_args: {num_classes: 1}
data:
  class_path: toy.data.Dark
trainer:
  max_epochs: 2
  accelerator: cpu
""",
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package on the path, and an entry for each part where docs/extending.md has it."""
    package = tmp_path / "outside" / "toy"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for name, text in FILES.items():
        (package / name).write_text(text.lstrip())
    monkeypatch.syspath_prepend(str(package.parent))
    from toy.network import Flat

    monkeypatch.setitem(networks.REGISTRY, "Flat", Flat)
    monkeypatch.setitem(
        registry.TASKS,
        "Guess",
        registry.TaskEntry(
            task="toy.task:Guess",
            card="toy.card:GuessCard",
            measure="toy.card:measure",
            usage="numbers = model(images)",
        ),
    )
    monkeypatch.setitem(registry.DATA, "Dark", registry.DataEntry("toy.data:Dark"))
    count = registry.CommandEntry("toy.command:main", "count parameters")
    monkeypatch.setitem(registry.COMMANDS, "count", count)
    yield package
    for name in [name for name in sys.modules if name == "toy" or name.startswith("toy.")]:
        del sys.modules[name]


def test_a_network_a_task_a_data_set_and_a_command_of_ones_own(toy: Path, zoo_cli) -> None:
    recipe = str(toy / "guess_dark.yaml")
    done = zoo_cli("fit", "--recipe", recipe)
    assert done.code == 0, done.err
    assert done.out.strip().splitlines()[-1] == "numbers = model(images)"
    run = Path("runs/guess_dark/version_0")
    model = zoo.load(run / "checkpoints/last.ckpt")
    assert type(model).__name__ == "Guess"
    assert model.data_info["name"] == "Dark"
    assert model.hparams["scale"] == 10.0

    published = zoo_cli("publish", str(run), "--name", "guess_dark", "--to", "out")
    assert published.code == 0, published.err
    card = Path("out/guess_dark/README.md").read_text()
    assert "largest guess:" in card
    again = zoo.load("out/guess_dark")
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(images), model(images))

    counted = zoo_cli("count", "out/guess_dark")
    assert (counted.code, counted.out.strip()) == (0, str(64 * 16 + 2 * 16 + 16 + 1))
    assert "count parameters" in zoo_cli("--help").out
    audited = zoo_cli("audit", "--recipe", recipe)
    assert audited.code == 0, audited.err


def test_a_rule_of_ones_own(toy: Path) -> None:
    import toy.rule  # noqa: F401 - its decorator is its entry

    try:
        rule = RULES["too-shallow"]
        for code, expected in ((rule.bad, True), (rule.good, False)):
            names: dict = {"torch": torch, "nn": nn}
            exec(code, names)
            report = zoo.audit(names["model"], *names["inputs"])
            found = [f.severity for f in report.findings if f.rule == "too-shallow"]
            assert found == (["info"] if expected else [])
    finally:
        del RULES["too-shallow"]
