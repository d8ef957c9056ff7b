"""What every task must do: the norm-state contract, and checkpoints that hold all that matters."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import zoo
from tests.tasks.harness import CASES, NORMALIZED, REGISTERED, Case, trainer
from zoo import networks, registry

every_task = pytest.mark.parametrize("case", CASES, ids=str)
every_normalized_task = pytest.mark.parametrize("case", NORMALIZED, ids=str)
every_registered_task = pytest.mark.parametrize("case", REGISTERED, ids=str)

State = dict[str, Tensor]


def state_of(module: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


class Fit(Checkpoint):  # a checkpoint's hooks run after all others
    """A fit, what its last validation used, and what it saved in mid-epoch and after it."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.folder, self.task = folder, case.task()
        self.validated: State = {}
        self.trainer = trainer(folder, callbacks=[self], enable_checkpointing=True)
        self.trainer.fit(self.task, datamodule=case.data(folder))
        self.trainer.save_checkpoint(folder / "end.ckpt", weights_only=False)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        batches = trainer.num_training_batches
        if trainer.global_step == batches + batches // 2:  # within the second epoch
            trainer.save_checkpoint(self.folder / "middle.ckpt", weights_only=False)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any
    ) -> None:
        self.validated = state_of(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.folder / "epoch.ckpt", weights_only=False)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Fit]:
    fits: dict[str, Fit] = {}

    def fit(case: Case) -> Fit:
        if str(case) not in fits:
            fits[str(case)] = Fit(case, tmp_path_factory.mktemp("fit"))
        return fits[str(case)]

    return fit


def test_every_registered_task_has_a_case() -> None:
    assert {case.name for case in REGISTERED} == set(registry.TASKS)


@every_task
def test_a_fit_leaves_a_frozen_backbone_bit_identical(case: Case, tmp_path: Path) -> None:
    """Parameters of every norm, running statistics, and BatchNorm's count of batches."""
    task = zoo.freeze(case.task(), keep=case.keep)
    trainable = {name for name, p in task.network.named_parameters() if p.requires_grad}
    keep = case.keep or tuple({name.rpartition(".")[0] for name in trainable})
    before = state_of(task.network)
    trainer(tmp_path, max_epochs=1).fit(task, datamodule=case.data(tmp_path))
    assert {name for name, p in task.network.named_parameters() if p.requires_grad} == trainable
    after = task.network.state_dict()
    norms = [name for name in after if "norm" in name or "running" in name]
    assert [name for name in norms if not name.startswith(keep)]
    for name, tensor in before.items():
        if not name.startswith(keep):
            assert torch.equal(after[name], tensor), name
    assert all(not torch.equal(after[name], before[name]) for name in trainable)


@every_normalized_task
@pytest.mark.parametrize("training", [False, True])
def test_sampling_uses_running_statistics_and_changes_no_buffer(
    case: Case, training: bool, fitted: Callable[[Case], Fit]
) -> None:
    task = copy.deepcopy(fitted(case).task).train(training)
    calls: dict[_BatchNorm, tuple[Tensor, Tensor]] = {}

    def keep(norm: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[norm] = (
            inputs[0].clone(),
            output.clone(),
        )  # the last call: others may look for dropout

    norms = [module for module in task.network.modules() if isinstance(module, _BatchNorm)]
    hooks = [norm.register_forward_hook(keep) for norm in norms]
    before, modes = state_of(task), [module.training for module in task.modules()]
    first = case.sample(task)
    for hook in hooks:
        hook.remove()
    assert len(calls) == len(norms) > 0
    for norm, (x, output) in calls.items():
        shape = [1, -1] + [1] * (x.ndim - 2)
        mean, deviation = norm.running_mean, (norm.running_var + norm.eps).sqrt()
        expected = (x - mean.view(shape)) / deviation.view(shape)
        if norm.affine:
            expected = expected * norm.weight.view(shape) + norm.bias.view(shape)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    assert equal(state_of(task), before)
    assert [module.training for module in task.modules()] == modes
    other = case.sample(task.train(not training))
    assert torch.equal(first, other) if isinstance(first, Tensor) else first == other


@torch.no_grad()
def moments(case: Case, weights: State, folder: Path) -> State:
    """BatchNorm's running statistics for given weights, from one batch of all training data."""
    task = case.task()
    task.load_state_dict(weights)
    task.eval()
    norms = [module for module in task.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # what is remembered is the last batch
    averaged = task.averaged() or task.network
    averaged(*case.inputs(case.data(folder)))
    return {name: buffer for name, buffer in task.named_buffers() if "running" in name}


def distance(found: State, expected: State) -> float:
    """The largest error of a mean, in deviations, and of the logarithm of a variance."""
    errors = []
    for name, value in expected.items():
        if name.endswith("running_mean"):
            deviation = expected[name.replace("mean", "var")].sqrt() + 1e-3
            errors.append(((found[name] - value) / deviation).abs().max())
        else:
            errors.append(((found[name] + 1e-6) / (value + 1e-6)).log().abs().max())
    return float(torch.stack(errors).max())


@every_normalized_task
def test_the_average_is_evaluated_with_statistics_of_its_own(
    case: Case, fitted: Callable[[Case], Fit], tmp_path: Path
) -> None:
    """In the last validation, in what an epoch's end saves, and in what the fit ends with."""
    fit = fitted(case)
    saved = torch.load(fit.folder / "epoch.ckpt", weights_only=True)
    expected = moments(case, fit.validated, tmp_path)
    for state in (fit.validated, saved["state_dict"], state_of(fit.task)):
        # The weights are the average, the same in all three.
        for name, parameter in fit.task.named_parameters():
            assert torch.equal(state[name], parameter), name
        assert distance(state, expected) < 0.1
    # Neither the statistics that training kept nor those that its last weights have would do.
    trained = saved["current_model_state"]
    assert distance(trained, expected) > 0.15
    assert distance(moments(case, trained, tmp_path), expected) > 0.15


@every_registered_task
def test_hparams_are_json_and_the_same_as_ever(case: Case, fitted: Callable[[Case], Fit]) -> None:
    task = case.task()
    assert set(task.hparams) == case.hparams
    assert json.loads(json.dumps(task.hparams)) == task.hparams
    assert task.hparams["network"] == networks.describe(task.network)
    content = torch.load(fitted(case).folder / "end.ckpt", weights_only=True)
    assert content["hyper_parameters"] == task.hparams


@every_registered_task
def test_a_checkpoint_needs_nothing_but_itself(case: Case, fitted: Callable[[Case], Fit]) -> None:
    fit = fitted(case)
    task = copy.deepcopy(fit.task).eval()
    path = fit.folder / "end.ckpt"
    with torch.no_grad():
        expected = task.golden()
        for twin in (type(task).load_from_checkpoint(path).eval(), zoo.load(path)):
            assert twin.data_info == task.data_info
            assert torch.equal(twin.golden(), expected)


@every_task
def test_a_fit_resumed_in_mid_epoch_ends_as_the_uninterrupted_one(
    case: Case, fitted: Callable[[Case], Fit], tmp_path: Path
) -> None:
    fit, task = fitted(case), case.task()
    again = trainer(tmp_path)
    middle = fit.folder / "middle.ckpt"
    again.fit(task, datamodule=case.data(tmp_path), ckpt_path=middle, weights_only=True)
    again.save_checkpoint(tmp_path / "end.ckpt", weights_only=False)
    ends = [torch.load(folder / "end.ckpt", weights_only=True) for folder in (fit.folder, tmp_path)]
    assert ends[0]["global_step"] == ends[1]["global_step"] > 0
    for part in ("state_dict", "current_model_state"):
        assert equal(ends[0][part], ends[1][part])


@every_task
def test_norms_and_biases_never_decay(case: Case, fitted: Callable[[Case], Fit]) -> None:
    fit = fitted(case)
    inputs = fit.task.example_inputs(case.data(fit.folder))

    def findings(optimizer: torch.optim.Optimizer) -> list[Any]:
        rules = ["decay-on-norm-or-bias"]
        return zoo.audit(fit.task.network, *inputs, optimizer=optimizer, rules=rules).findings

    for optimizer in (fit.task.make_optimizer(), *fit.trainer.optimizers):
        assert not findings(optimizer)
    assert findings(torch.optim.AdamW(fit.task.network.parameters(), weight_decay=0.1))
