"""What runs unseen, and running statistics in unusual places: never "clean"."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from tests.diagnostics.trace.test_probe import Given
from zoo.diagnostics.audit import audit


class OwnNorm(nn.Module):
    """BatchNorm by hand after dropout, its statistics in one of several places."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.linear, self.where = nn.Linear(8, 8), where
        if where == "another module":
            self.norm = nn.BatchNorm1d(8)
        elif where == "plain object":
            self.kept = type("Kept", (), {})()
            self.kept.mu, self.kept.var = torch.zeros(8), torch.ones(8)
        elif where == "list":
            self.kept = [torch.zeros(8), torch.ones(8)]
        elif where == "parameters":
            self.mu = nn.Parameter(torch.zeros(8), requires_grad=False)
            self.var = nn.Parameter(torch.ones(8), requires_grad=False)
        elif where == "attributes":
            self.mu, self.var = torch.zeros(8), torch.ones(8)
        else:
            self.register_buffer("mu", torch.zeros(8))
            self.register_buffer("var", torch.ones(8))

    def statistics(self) -> tuple[Tensor, Tensor]:
        if self.where == "another module":
            return self.norm.running_mean, self.norm.running_var
        if self.where == "list":
            return self.kept[0], self.kept[1]
        holder = self.kept if self.where == "plain object" else self
        return holder.mu, holder.var

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(F.dropout(x, 0.5, self.training))
        mean, var = self.statistics()
        if self.training:
            m, v = x.mean(0), x.var(0, unbiased=False)
            with torch.no_grad():
                if self.where == "set anew":
                    self.mu, self.var = 0.9 * mean + 0.1 * m, 0.9 * var + 0.1 * v
                elif self.where == "data":
                    mean.data.mul_(0.9).add_(0.1 * m)
                    var.data = 0.9 * var + 0.1 * v
                else:
                    mean.lerp_(m, 0.1)
                    var.lerp_(v, 0.1)
            mean, var = m, v
        return (x - mean) / (var + 1e-5).sqrt()


PLACES = """another module/buffers/attributes/plain object/list/parameters/set anew/data""".split(
    "/"
)


@pytest.mark.parametrize("where", PLACES)
def test_running_statistics_by_hand_are_measured_or_refused(where: str) -> None:
    model, x = OwnNorm(where), torch.randn(6, 8)
    before = [tensor.clone() for tensor in model.statistics()]
    report = audit(model, x)
    assert not report.ok
    (sentence,) = report.unaudited
    assert "var" in sentence or "running_var" in sentence or "kept.1" in sentence
    assert f"not audited: {sentence}" in str(report)
    assert "clean" not in str(report)
    with pytest.raises(AssertionError, match="not audited"):
        zoo.testing.assert_clean(model, x)
    with pytest.raises(zoo.UserError, match=r"variance_shift: .*running statistics"):
        zoo.variance_shift(model, [x])
    with pytest.raises(zoo.UserError, match=r"recalibrate: .*running statistics"):
        zoo.recalibrate(model, [x])
    after = model.statistics()
    assert all(torch.equal(one, value) for one, value in zip(after, before, strict=True))


class Codebook(nn.Module):
    """A vector quantizer: its codes follow the data, and no normalization reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.register_buffer("codes", torch.randn(16, 8))
        self.register_buffer("counts", torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.linear(x))
        nearest = torch.cdist(x, self.codes).argmin(1)
        if self.training:
            with torch.no_grad():
                chosen = F.one_hot(nearest, 16).float()
                self.counts.mul_(0.9).add_(0.1 * chosen.sum(0))
                self.codes.mul_(0.9).add_(0.1 * chosen.T @ x / self.counts[:, None])
        return F.embedding(nearest, self.codes)


class Averaged(nn.Module):
    """Averages of weights, by which evaluation runs, and a queue of what was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.register_buffer("weight", self.linear.weight.detach().clone())
        self.register_buffer("bias", self.linear.bias.detach().clone())
        self.register_buffer("queue", torch.zeros(8, 32))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.norm(F.linear(x, self.weight, self.bias))
        with torch.no_grad():
            self.weight.lerp_(self.linear.weight, 0.1)
            torch._foreach_lerp_([self.bias], [self.linear.bias], 0.1)
            self.queue[:, : len(x)] = x.T
        return self.norm(self.linear(x))


class Stateful(nn.Module):
    """A state that evaluation carries on as training does."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.norm = nn.GRUCell(8, 8), nn.BatchNorm1d(8)
        self.register_buffer("state", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.state)
        self.state = 0.5 * self.state + x.mean(0)
        return x


@pytest.mark.parametrize("kind", [Codebook, Averaged, Stateful])
def test_what_moves_and_is_no_running_statistic(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = kind(), torch.randn(6, 8)
    report = audit(model, x)
    assert report.audited, str(report)
    assert [layer.module for layer in zoo.variance_shift(model, [x]).layers] == ["norm"]


# -- code that cannot be followed ------------------------------------------------------------------


@torch.jit.script
def scripted_dropout(x: Tensor, training: bool) -> Tensor:
    return torch.nn.functional.dropout(x, 0.5, training)


@torch.jit.script
def scripted_norm(x: Tensor, mean: Tensor, var: Tensor, training: bool) -> Tensor:
    return torch.batch_norm(x, None, None, mean, var, training, 0.1, 1e-5, False)


@torch.jit.script
def scripted_swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


SCRIPTED = torch.jit.script(nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8)))
MEAN, SCALE = torch.randn(8), {"by channel": torch.rand(8) + 1}


def before_norm(self: Any, x: Tensor) -> Tensor:
    return self.norm(scripted_dropout(self.linear(x), self.training))


def before_norm_by_a_dict(self: Any, x: Tensor) -> Tensor:
    features = {"x": scripted_dropout(self.linear(x), self.training)}
    return self.norm(self.linear(features["x"]))


def after_norm(self: Any, x: Tensor) -> Tensor:
    return self.linear(scripted_dropout(self.norm(x), self.training))


def norm_itself(self: Any, x: Tensor) -> Tensor:
    norm = self.norm
    x = F.dropout(x, 0.5, self.training)
    return scripted_norm(x, norm.running_mean, norm.running_var, self.training)


def global_network(self: Any, x: Tensor) -> Tensor:
    return SCRIPTED(self.linear(x))


@pytest.mark.parametrize(
    "forward", [before_norm, before_norm_by_a_dict, after_norm, norm_itself, global_network]
)
def test_scripted_code_that_is_no_submodule_is_not_audited(forward: Any) -> None:
    model = Given(forward, linear=nn.Linear(8, 8), norm=nn.BatchNorm1d(8))
    report = audit(model, torch.randn(6, 8))
    assert not report.ok
    assert report.unaudited
    assert "clean" not in str(report)


@pytest.mark.parametrize("where", ["attribute", "list", "closure"])
def test_a_hidden_scripted_network_is_not_audited(where: str) -> None:
    network = torch.jit.script(nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8)))
    if where == "closure":
        model = Given(lambda self, x: network(self.linear(x)), linear=nn.Linear(8, 8))
    else:
        model = Given(lambda self, x: self.hidden[0](self.linear(x)), linear=nn.Linear(8, 8))
        model.__dict__["hidden"] = [network]
        if where == "attribute":
            model.body = lambda self, x: self.hidden(self.linear(x))
            model.__dict__["hidden"] = network
    x = torch.randn(6, 8)
    before = network[2].running_var.clone()
    report = audit(model, x)
    assert not report.ok
    assert len(report.unseen) == 1
    with pytest.raises(zoo.UserError, match="scripted"):
        zoo.variance_shift(model, [x])
    with pytest.raises(zoo.UserError, match="scripted"):
        zoo.recalibrate(model, [x])
    assert torch.equal(network[2].running_var, before)


def test_what_is_unseen_and_bears_on_nothing_is_a_note() -> None:
    def activation(self: Any, x: Tensor) -> Tensor:
        return self.linear(scripted_swish(self.norm(x)))

    def constants(self: Any, x: Tensor) -> Tensor:
        return self.norm((x - MEAN) / SCALE["by channel"])

    x = torch.randn(6, 8)
    report = audit(Given(activation, linear=nn.Linear(8, 8), norm=nn.BatchNorm1d(8)), x)
    assert report.ok
    assert any("unknown origin" in note for note in report.notes)
    report = audit(Given(constants, norm=nn.BatchNorm1d(8)), x)
    assert report.ok
    assert not report.notes
