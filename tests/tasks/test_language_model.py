from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import zoo
from zoo.data import TextFile
from zoo.errors import UserError
from zoo.networks import LSTM, Transformer
from zoo.tasks import LanguageModel
from zoo.tasks.optim import make_optimizer

RECIPE = """
model:
  class_path: zoo.tasks.LanguageModel
  init_args:
    network:
      class_path: zoo.networks.Transformer
      init_args: {vocab_size: 27, context_length: 16, dim: 32, depth: 2, heads: 2, qk_norm: true}
    optimizer: muon
    lr: 0.01
data:
  class_path: zoo.data.TextFile
  init_args: {path: mine.txt, context_length: 16, batch_size: 16, epoch_steps: 30}
trainer: {max_epochs: 3, gradient_clip_val: 1.0}
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_text("the quick brown fox jumps over the lazy dog " * 80, encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_fit_learns_keeps_samples_and_loads_in_one_line(zoo_cli, text: Path) -> None:
    Path("mine.yaml").write_text(RECIPE)
    result = zoo_cli("fit", "--recipe", "mine.yaml")
    assert result.code == 0, result.err
    run = Path("runs/mine/version_0")
    rows = [row for row in read_rows(run / "metrics.csv") if row.get("val/loss")]
    losses = [float(row["val/loss"]) for row in rows]
    assert losses[-1] < losses[0] < math.log(27)
    assert losses[-1] < 0.5
    assert float(rows[-1]["val/perplexity"]) == pytest.approx(math.exp(losses[-1]), rel=1e-4)
    bits = float(rows[-1]["val/bits_per_character"])
    assert bits == pytest.approx(losses[-1] / math.log(2), rel=1e-4)
    samples = (run / "samples.txt").read_text()
    assert samples.count("epoch") == 3
    assert "print(model.generate(" in result.out

    model = zoo.load(run / "checkpoints/last.ckpt")
    assert not model.training
    model.keep_sample(run, 2)  # as a resumed run does: what followed is made again
    again = (run / "samples.txt").read_text()
    assert again.count("epoch") == 2
    assert samples.startswith(again.partition(" epoch 2 ")[0])
    made = model.generate("the quick ", max_new_tokens=34, temperature=0)
    assert made == "the quick brown fox jumps over the lazy dog "[:44]
    assert model.generate("the ", 20, seed=1) == model.generate("the ", 20, seed=1)
    with pytest.raises(UserError, match="holds 'é', which the model does not know"):
        model.generate("café")
    with pytest.raises(UserError, match="top_p is 2"):
        model.generate("the", top_p=2.0)
    with pytest.raises(UserError, match="has no classifier to replace"):
        zoo.load(run / "checkpoints/last.ckpt", num_classes=3)

    sampled = zoo_cli(
        *("sample", "--recipe", "mine.yaml", "--ckpt_path", str(run / "checkpoints/last.ckpt")),
        *("--prompt", "the lazy", "--max_new_tokens", "5", "--temperature", "0"),
    )
    assert (sampled.code, sampled.out) == (0, "the lazy dog \n")

    validated = zoo_cli("validate", "--recipe", "mine.yaml", "--ckpt_path", "last")
    assert validated.code == 0, validated.err
    assert "val/loss_windows" in validated.out

    done = zoo_cli("publish", str(run), "--name", "mine", "--to", "out")
    assert done.code == 0, done.err
    config = json.loads(Path("out/mine/config.json").read_text())
    assert config["headline"] == "val/loss"
    assert config["metrics"]["val/loss"] == pytest.approx(losses[-1], abs=1e-4)
    assert 0 < config["metrics"]["val/loss_windows"] < losses[0]
    assert "of its" not in Path("out/mine/README.md").read_text()
    shipped = zoo.load("out/mine")
    tokens = torch.arange(16)[None] % 27
    torch.testing.assert_close(shipped(tokens), model(tokens))
    assert zoo_cli("verify", "out/mine").code == 0


def test_validation_is_the_mean_over_all_held_out_characters(text: Path) -> None:
    from lightning.pytorch import Trainer

    data = TextFile(str(text), context_length=10, batch_size=7)
    data.prepare_data()
    task = LanguageModel(Transformer(len(data.vocabulary), 16, 16, 1, 2))
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    sweep, windows, seen = trainer.validate(task, datamodule=data, verbose=False)
    held_out = data._tokens["val"]

    def mean_loss(text: torch.Tensor) -> float:
        losses = []
        for start in range(0, len(text) - 1, 10):
            piece = text[start : start + 11]
            losses.append(F.cross_entropy(task(piece[None, :-1])[0], piece[1:], reduction="none"))
        everything = torch.cat(losses)
        assert len(everything) == len(text) - 1
        return everything.mean().item()

    with torch.no_grad():
        assert sweep["val/loss"] == pytest.approx(mean_loss(held_out), abs=1e-5)
        end = data._tokens["train"][-len(held_out) :]
        assert seen["val/loss_seen"] == pytest.approx(mean_loss(end), abs=1e-5)
    assert windows["val/loss_windows"] == pytest.approx(sweep["val/loss"], abs=0.2)


def test_predict_gives_probabilities_of_each_next_token() -> None:
    task = LanguageModel(Transformer(27, 16, 16, 1, 2)).eval()
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        probabilities = task.predict_step((tokens, tokens), 0)
        odds = task(tokens).exp()
        assert torch.equal(task.predict_step(tokens, 0), probabilities)
    assert probabilities.shape == (2, 6, 27)
    torch.testing.assert_close(probabilities, odds / odds.sum(2, keepdim=True))


def test_the_recurrent_counterpart_learns_too(zoo_cli, text: Path) -> None:
    Path("mine.yaml").write_text(RECIPE)
    result = zoo_cli(
        *("fit", "--recipe", "mine.yaml", "--model.network", "zoo.networks.LSTM"),
        *("--model.network.vocab_size", "27", "--model.network.dim", "32"),
        *("--model.network.drop_rate", "0.1", "--model.optimizer", "adamw"),
        *("--data.epoch_steps", "120"),
    )
    assert result.code == 0, result.err
    rows = [row for row in read_rows(Path("runs/mine/version_0/metrics.csv")) if row["val/loss"]]
    assert float(rows[-1]["val/loss"]) < 2 < math.log(27)


@pytest.mark.parametrize("network", [Transformer(27, 8, 16, 2, 2), LSTM(27, 16)])
def test_muon_leaves_tables_and_vectors_to_its_fallback(network) -> None:
    optimizer = make_optimizer(network, "muon", 0.01, 0.1, 0.95)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    fallback = {
        names[id(p)] for g in optimizer.param_groups if g.get("use_fallback") for p in g["params"]
    }
    assert fallback == {"embed.weight"}  # tied: the last layer is the same table
    undecayed = [
        names[id(p)] for g in optimizer.param_groups if not g["weight_decay"] for p in g["params"]
    ]
    assert all("norm" in name or "bias" in name for name in undecayed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.network.vocab_size", "20"], "give --model.network.vocab_size 27"),
        (["--data.context_length", "32"], "give --model.network.context_length 32"),
        (["--model.final_lr", "2"], "model.final_lr is 2"),
        (["--data.path", "nowhere.txt"], "no such file"),
    ],
)
def test_what_does_not_fit_is_one_line(zoo_cli, text: Path, options, message) -> None:
    Path("mine.yaml").write_text(RECIPE)
    result = zoo_cli("fit", "--recipe", "mine.yaml", *options)
    assert result.code == 2
    assert message in result.err.splitlines()[-1]
