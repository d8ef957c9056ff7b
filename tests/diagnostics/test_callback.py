from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

import zoo
from tests.diagnostics.test_variance_shift import batches
from zoo.data import Batches
from zoo.tasks import ImageClassifier


class LeftInEvaluation(ImageClassifier):
    """What a task of somebody else's may do: ours trains."""

    def on_fit_start(self) -> None:
        self.eval()


def fit(network: nn.Module, fail_on: str = "error", evaluate: bool = False) -> None:
    kind = LeftInEvaluation if evaluate else ImageClassifier
    task = kind(network, optimizer="sgd", lr=0.1, schedule="constant", warmup=1)
    loader = Batches(torch.cat(batches(2)), torch.zeros(32, dtype=torch.long), 16, shuffle=True)
    trainer = Trainer(
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[zoo.AuditCallback(fail_on)],
    )
    trainer.fit(task, loader)


def network(rate: float = 0.0) -> nn.Module:
    return nn.Sequential(nn.Dropout(rate), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def test_a_clean_model_is_trained() -> None:
    model = network()
    before = model[1].weight.clone()
    fit(model)
    assert not torch.equal(model[1].weight, before)


def test_a_fault_stops_the_fit_before_its_first_step() -> None:
    model = network(0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(zoo.UserError, match="the fit was not started"):
        fit(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fit(model, fail_on="never")


def test_a_model_left_in_evaluation_mode_is_noticed() -> None:
    with pytest.raises(zoo.UserError, match="1 finding of severity error"):
        fit(network(), evaluate=True)


def test_a_model_that_cannot_be_run_on_the_batch_is_trained_all_the_same() -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor, *, scale: torch.Tensor | None = None) -> torch.Tensor:
            if torch.overrides._get_current_function_mode() is not None:
                raise RuntimeError("not now")
            return self.layer(x)

    model = TwoInputs()
    before = model.layer.weight.clone()
    with pytest.warns(UserWarning, match=r"AuditCallback: not audited .*give it example_input"):
        fit(model)
    assert not torch.equal(model.layer.weight, before)


def test_fail_on_is_checked() -> None:
    with pytest.raises(zoo.UserError, match="choose error, warning, info or never"):
        zoo.AuditCallback("errors")
