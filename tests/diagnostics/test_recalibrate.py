from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

import zoo
from zoo.diagnostics.recalibrate import estimate_running_statistics


def batches(count: int = 7, size: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 6, generator=generator) * (i + 1) + i for i in range(count)]


@pytest.mark.parametrize("momentum", [0.1, None], ids=["moving", "cumulative"])
def test_statistics_are_pooled_with_dropout_off_and_all_else_left_alone(momentum) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Dropout(0.5), nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=momentum), nn.ReLU()
    )
    model[3].eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    assert estimate_running_statistics(model, batches()) == 1
    assert torch.equal(state, torch.get_rng_state())

    values = model[1](torch.cat(batches())).double()
    torch.testing.assert_close(model[2].running_mean.double(), values.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model[2].running_var.double(), values.var(0), rtol=1e-5, atol=1e-5)
    for name, value in model.state_dict().items():
        if not name.startswith("2.running"):
            assert torch.equal(value, before[name]), name
    assert [module.training for module in model] == [True, True, True, False]
    assert not model[2]._forward_pre_hooks


def test_frozen_batchnorm_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    zoo.freeze(model, keep=("2",))
    before = model[1].running_mean.clone()
    assert estimate_running_statistics(model, batches()) == 0
    assert torch.equal(model[1].running_mean, before)


def test_a_failing_forward_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)).train()
    before = copy.deepcopy(model.state_dict())

    def broken():
        yield batches()[0]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        estimate_running_statistics(model, broken())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert model[1].training


# -- zoo.recalibrate -------------------------------------------------------------------------------


def deep(momentum: float | None = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.BatchNorm1d(8, momentum=momentum),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8, momentum=momentum),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8, momentum=momentum),
        nn.Linear(8, 3),
    )


@pytest.mark.parametrize("momentum", [0.1, None], ids=["moving", "cumulative"])
def test_recalibrated_statistics_equal_those_of_one_huge_batch(momentum) -> None:
    model = deep(momentum)
    loader = [x for i, x in enumerate(batches()) for x in x.split(16 - 2 * i)]  # of all sizes
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = zoo.recalibrate(model, loader)
    assert result.layers == 3
    assert result.passes >= 4  # each layer settles after those before it

    huge = deep(momentum=1.0)  # training by one batch of everything, without dropout
    huge.load_state_dict(before)
    huge.train()
    huge[3].eval()
    huge(torch.cat(batches()))
    for name, value in model.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(value, huge.state_dict()[name], rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(value, before[name]), name
    assert model.training


def test_a_deep_network_on_batches_of_four_gets_the_statistics_of_one_huge_batch() -> None:
    """Where the first estimates are rough, and their errors grow from layer to layer."""
    torch.manual_seed(0)
    layers = [(nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU()) for _ in range(12)]
    model = nn.Sequential(*(layer for block in layers for layer in block)).eval()
    whole = copy.deepcopy(model).train()
    for layer in whole:
        if isinstance(layer, nn.BatchNorm1d):
            layer.momentum = 1.0
    data = torch.randn(32, 16)
    whole(data)
    early = zoo.recalibrate(copy.deepcopy(model), data.split(4), passes=2)
    assert 0 < early.waiting < 12
    assert f"{early.waiting} layers of them only by a first estimate" in str(early)
    result = zoo.recalibrate(model, data.split(4))
    assert result.passes <= 13
    assert result.waiting == 0
    assert "first estimate" not in str(result)
    for mine, other in zip(model, whole, strict=True):
        if isinstance(mine, nn.BatchNorm1d):
            assert torch.allclose(mine.running_mean, other.running_mean, rtol=1e-2, atol=1e-3)
            assert torch.allclose(mine.running_var, other.running_var, rtol=1e-2, atol=1e-3)


def test_an_iterator_is_gone_round_as_often_as_needed() -> None:
    one, two = deep(), deep()
    zoo.recalibrate(one, batches())
    zoo.recalibrate(two, iter(batches()))
    for a, b in zip(one.buffers(), two.buffers(), strict=True):
        assert torch.equal(a, b)


def test_single_samples_are_pooled_too() -> None:
    one, two = deep(), deep()
    zoo.recalibrate(one, torch.cat(batches()).split(1))
    zoo.recalibrate(two, batches())
    for a, b in zip(one.buffers(), two.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_scores_before_and_after_on_held_out_data() -> None:
    model = deep()
    model.train()
    for x in batches() * 3:
        model(x)
    held_out = [(x, torch.arange(16) % 3) for x in batches(3)]
    result = zoo.recalibrate(model, batches(), held_out=held_out)
    assert set(result.before) == set(result.after) == {"accuracy", "nll", "ece"}
    assert result.before["nll"] != result.after["nll"]
    assert "before" in str(result)
    model.eval()
    logits = torch.cat([model(x) for x, _ in held_out]).detach()
    expected = nn.functional.cross_entropy(logits, torch.cat([y for _, y in held_out]))
    assert result.after["nll"] == pytest.approx(float(expected), rel=1e-5)


def test_a_parent_that_keeps_its_norms_frozen_is_obeyed() -> None:
    class NormEval(nn.Sequential):
        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            self[1].eval()
            return self

    model = nn.Sequential(NormEval(nn.Linear(6, 5), nn.BatchNorm1d(5)), nn.BatchNorm1d(5))
    model.eval()
    before = model[0][1].running_mean.clone()
    assert zoo.recalibrate(model, batches()).layers == 1
    assert torch.equal(model[0][1].running_mean, before)
    assert model[1].running_mean.abs().max() > 0


def test_a_loader_that_gives_other_data_each_time_is_not_gone_through_for_ever() -> None:
    class Augmented:
        def __iter__(self):
            return iter([x + torch.randn(()) for x in batches()])

    assert zoo.recalibrate(deep(), Augmented()).passes == 3
    assert zoo.recalibrate(deep(), Augmented(), passes=2).passes == 2


def test_what_recalibrate_refuses() -> None:
    with pytest.raises(zoo.UserError, match="no BatchNorm"):
        zoo.recalibrate(nn.Linear(6, 2), batches())
    with pytest.raises(zoo.UserError, match="no batch"):
        zoo.recalibrate(deep(), [])
    with pytest.raises(zoo.UserError, match="at least 1"):
        zoo.recalibrate(deep(), batches(), passes=0)


def _recalibrate_a_share(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    model = deep()
    result = zoo.recalibrate(model, batches()[rank::2])  # four batches here, three there
    torch.save((model.state_dict(), result.passes), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_pool_what_they_have_seen(tmp_path) -> None:
    torch.multiprocessing.spawn(_recalibrate_a_share, (str(tmp_path),), nprocs=2)
    model = deep()
    zoo.recalibrate(model, batches())
    for rank in range(2):
        state, _ = torch.load(tmp_path / f"{rank}.pt")
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=1e-5, atol=1e-5)


# -- what is left alone ----------------------------------------------------------------------------


class NormWithDropout(nn.BatchNorm1d):
    """A BatchNorm with a dropout inside, as timm's has with DropBlock."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(super().forward(x))


@pytest.mark.parametrize("kind", ["child", "timm"])
def test_a_dropout_within_a_norm_stays_off(kind) -> None:
    torch.manual_seed(0)
    if kind == "child":
        first: nn.Module = NormWithDropout(8)
    else:
        first = BatchNormAct2d(8, act_layer=nn.Identity, drop_layer=lambda: nn.Dropout(0.5))
    last = nn.BatchNorm1d(4) if kind == "child" else nn.BatchNorm2d(4)
    linear = nn.Linear(8, 4) if kind == "child" else nn.Conv2d(8, 4, 1)
    model = nn.Sequential(first, linear, last)
    data = torch.randn(2000, 8) if kind == "child" else torch.randn(500, 8, 2, 2)
    zoo.recalibrate(model, data.split(500), passes=1)
    inside = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert inside
    assert all(module.training for module in model.modules())
    clean = nn.functional.batch_norm(data, None, None, training=True)
    values = linear(clean).transpose(0, 1).flatten(1).detach()
    torch.testing.assert_close(last.running_var, values.var(1), rtol=0.03, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("estimate", [zoo.recalibrate, estimate_running_statistics])
def test_values_that_are_not_finite_are_told_and_nothing_is_written(bad, estimate) -> None:
    model, data = deep(), batches()
    data[3][2, 1] = bad
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(zoo.UserError, match="what 1 normalizes is not finite"):
        estimate(model, data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_norms_that_never_run_are_no_success() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.norm(x) if self.training else x)

    model = Unused()
    with pytest.raises(zoo.UserError, match="nothing was re-estimated"):
        zoo.recalibrate(model, batches())
    assert torch.equal(model.norm.running_var, torch.ones(6))


def test_held_out_labels_are_found_or_asked_for() -> None:
    model = deep()
    with pytest.raises(zoo.UserError, match="held_out needs labels"):
        zoo.recalibrate(model, batches(), held_out=batches())
    labels = torch.arange(16) % 3
    named = zoo.recalibrate(
        deep(), batches(), held_out=[{"input": x, "labels": labels} for x in batches()]
    )
    pairs = zoo.recalibrate(deep(), batches(), held_out=[(x, labels) for x in batches()])
    assert named.after == pairs.after
