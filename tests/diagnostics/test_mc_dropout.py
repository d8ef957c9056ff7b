from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.diagnostics import mc_dropout as module
from zoo.diagnostics import replay
from zoo.diagnostics.mc_dropout import single
from zoo.diagnostics.replay import Recording


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, 2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).mean(1))


class OnlyAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rate = 0.3 if self.training else 0.0
        return self.head(F.scaled_dot_product_attention(x, x, x, dropout_p=rate).mean(1))


class EverythingInOne(nn.Module):
    """One module owns a dropout and a BatchNorm, both functional."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.batch_norm(x, self.mean, self.var, training=self.training)
        return self.head(F.dropout(x, 0.3, self.training))


class Spatial(nn.Module):
    """Drops whole channels, before and after BatchNorm, and writes the batch size in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, stride=2)
        self.norm, self.drop = nn.BatchNorm2d(4), nn.Dropout2d(0.3)
        self.head = nn.LazyLinear(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.second(self.drop(self.first(x).relu())))
        return self.head(self.drop(x).view(4, -1))


class AcrossTheBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.4), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.drop(x)
        return self.head((h - h.mean(0)) * h.softmax(0))


class Unstackable(nn.Module):
    """Drops by probabilities that an earlier dropout has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.4), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.drop(x)
        return self.head(x * torch.bernoulli(h.sigmoid()) if self.training else h)


def image(size: int = 64, batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


MODELS: dict[str, tuple[Any, torch.Tensor]] = {
    "head": (lambda: timm.create_model("resnet18", drop_rate=0.3, num_classes=5), image()),
    "functional": (
        lambda: torchvision.models.densenet121(drop_rate=0.2, num_classes=5),
        image(),
    ),
    "attention of timm": (
        lambda: timm.create_model(
            "vit_tiny_patch16_224", attn_drop_rate=0.3, num_classes=5, depth=2, weight_init="reset"
        ),
        image(224, 2),
    ),
    "attention": (OnlyAttention, torch.randn(3, 5, 16)),
    "encoder": (Encoder, torch.randn(3, 5, 16)),
    "recurrent": (Recurrent, torch.randn(3, 6, 8)),
    "spatial": (Spatial, image(12)),
    "across the batch": (AcrossTheBatch, torch.randn(5, 8)),
    "unstackable": (Unstackable, torch.randn(5, 8)),
    "everything in one": (EverythingInOne, torch.randn(6, 8)),
}


def loop(model: nn.Module, x: torch.Tensor, samples: int, seed: int) -> torch.Tensor:
    """Naively: training mode but for BatchNorm, and the whole forward again for every sample."""
    model = copy.deepcopy(model).train()
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()

    def by_running_statistics(x: torch.Tensor, mean: Any, var: Any, **_: Any) -> torch.Tensor:
        return (x - mean) / (var + 1e-5).sqrt()

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        if isinstance(model, EverythingInOne):
            patch.setattr(F, "batch_norm", by_running_statistics)
        torch.manual_seed(seed)
        return torch.stack([model(x).softmax(1) for _ in range(samples)])


@pytest.mark.parametrize("name", MODELS)
def test_samples_equal_those_of_a_loop_and_the_model_stays_untouched(name, monkeypatch) -> None:
    made = []

    class Watched(Recording):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(module, "Recording", Watched)
    monkeypatch.setitem(replay.STACK_BYTES, "cpu", 2**30)  # however large a sample is
    torch.manual_seed(0)
    build, x = MODELS[name]
    model = build()
    model(x)
    model.train(name != "head")
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    result = zoo.mc_dropout(model, x, 11, seed=3, return_samples=True)
    assert bool(made[-1].stacked) == (name != "unstackable")
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    torch.testing.assert_close(result.samples, loop(model, x, 11, seed=3), rtol=0, atol=1e-6)
    assert result.variance.mean() > 1e-7


def test_the_figures_are_those_of_the_samples() -> None:
    build, x = MODELS["everything in one"]
    torch.manual_seed(0)
    result = zoo.mc_dropout(build(), x, samples=50, return_samples=True)
    samples = result.samples.double()
    assert samples.shape == (50, 6, 3)
    mean = samples.mean(0)
    torch.testing.assert_close(result.mean.double(), mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        result.variance.double(), samples.var(0, unbiased=False), rtol=0, atol=1e-6
    )
    entropy = -(mean * mean.log()).sum(1)
    expected = -(samples * samples.log()).sum(2).mean(0)
    torch.testing.assert_close(result.entropy.double(), entropy, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.expected_entropy.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        result.mutual_information.double(), entropy - expected, rtol=0, atol=1e-5
    )
    assert (result.mutual_information > 0).all()
    assert zoo.mc_dropout(build(), x, samples=5).samples is None


def test_the_seed_decides() -> None:
    torch.manual_seed(0)
    build, x = MODELS["everything in one"]
    model = build()
    one, again, other = (zoo.mc_dropout(model, x, 5, seed=seed).mean for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_what_comes_before_the_first_dropout_runs_once() -> None:
    torch.manual_seed(0)
    build, x = MODELS["head"]
    model = build()
    calls = []
    model.layer4.register_forward_hook(lambda *_: calls.append(1))
    zoo.mc_dropout(model, x, samples=50)
    assert len(calls) == 2  # one row to find the dropout, the batch to predict


def test_stochastic_depth_only_by_choice() -> None:
    torch.manual_seed(0)
    depth = torchvision.ops.StochasticDepth(0.5, "row")
    model, x = nn.Sequential(nn.Linear(8, 8), depth, nn.Linear(8, 3)), torch.randn(4, 8)
    with pytest.raises(zoo.UserError, match="drop_path=True samples stochastic depth"):
        zoo.mc_dropout(model, x)
    assert zoo.mc_dropout(model, x, 20, drop_path=True).variance.mean() > 1e-4


def test_stochastic_depth_equals_a_loop() -> None:
    torch.manual_seed(0)
    depth = torchvision.ops.StochasticDepth(0.5, "row")
    model, x = nn.Sequential(nn.Linear(8, 8), depth, nn.Linear(8, 3)), torch.randn(4, 8)
    result = zoo.mc_dropout(model, x, 20, seed=3, drop_path=True, return_samples=True)
    torch.testing.assert_close(result.samples, loop(model, x, 20, seed=3), rtol=0, atol=1e-6)


def test_a_model_without_dropout_is_a_clear_error() -> None:
    with pytest.raises(zoo.UserError, match="ResNet has no dropout that is active in training"):
        zoo.mc_dropout(torchvision.models.resnet18(num_classes=3), image())


def test_chunks_cover_the_batch_whatever_their_size() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    x = torch.randn(35, 8)  # more than the first chunk
    whole = zoo.mc_dropout(model, x, 400)
    for batch_size in (1, 33, 35):
        part = zoo.mc_dropout(model, x, 400, batch_size=batch_size, return_samples=True)
        assert part.samples.shape == (400, 35, 3)
        torch.testing.assert_close(part.mean, whole.mean, rtol=0, atol=0.08)  # other masks
    assert whole.mean.shape == (35, 3)


def test_an_input_that_a_forward_overwrites_stays_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Linear(8, 3))
    x = torch.randn(40, 8)
    before = x.clone()
    result = zoo.mc_dropout(model, x, 200)
    assert torch.equal(x, before)
    model[0].inplace = False
    assert torch.equal(zoo.mc_dropout(model, x, 200).mean, result.mean)


def test_a_backbone_in_evaluation_mode_is_reached() -> None:
    backbone = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).eval()
    model = nn.Sequential(backbone, nn.Linear(8, 3))
    assert model.training
    assert zoo.mc_dropout(model, torch.randn(4, 8), 20).variance.mean() > 1e-4


def test_a_large_batch_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 3))
    sizes = []
    model[0].register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    # What comes before the first dropout needs memory too: 2 KB a row and layer.
    monkeypatch.setattr(module, "CHUNK_BYTES", 2**20)
    zoo.mc_dropout(model, torch.randn(1000, 8), 2)
    assert sizes[:2] == [1, 32]
    assert all(50 < size < 300 for size in sizes[2:-1])


def test_dicts_tuples_and_outputs_with_logits() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
            return {"hidden": x, "logits": self.head(self.drop(x)) * scale}

    torch.manual_seed(0)
    model, x = Named(), torch.randn(4, 8)
    plain = zoo.mc_dropout(model, x, 5).mean
    assert torch.equal(zoo.mc_dropout(model, {"x": x}, 5).mean, plain)
    assert torch.equal(zoo.mc_dropout(model, (x, 1.0), 5).mean, plain)


def test_bad_arguments() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3))
    x = torch.randn(4, 8)
    with pytest.raises(zoo.UserError, match="samples is 0"):
        zoo.mc_dropout(model, x, 0)
    with pytest.raises(zoo.UserError, match="batch_size is 0"):
        zoo.mc_dropout(model, x, batch_size=0)
    with pytest.raises(zoo.UserError, match="does not run in training mode"):
        zoo.mc_dropout(model, torch.randn(4, 7))
    with pytest.raises(zoo.UserError, match=r"logits \(B, K\)"):
        zoo.mc_dropout(model, torch.randn(4, 2, 8))
    with pytest.raises(zoo.UserError, match="K > 1"):
        zoo.mc_dropout(nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 1)), x)
    with pytest.raises(zoo.UserError, match="at least one model"):
        zoo.ensemble([], x)


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3)).train() for _ in range(3)]
    x = torch.randn(4, 8)
    result = zoo.ensemble(models, x, return_samples=True)
    expected = torch.stack([model.eval()(x).softmax(1) for model in models]).detach()
    torch.testing.assert_close(result.samples, expected)
    torch.testing.assert_close(result.mean, expected.mean(0))
    alone = single(models[0], x)
    torch.testing.assert_close(alone.mean, expected[0])
    assert alone.variance.max() == alone.mutual_information.max() == 0


# -- whose mode a dropout obeys --------------------------------------------------------------------


class Wrapped(nn.Module):
    """Runs a backbone that drops in a given way, with a BatchNorm as well as the dropout."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.linear, self.norm, self.head = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        self.drop, self.inner, self.run = nn.Dropout(0.5), Inner(), run
        self.inner.register_forward_hook(self.inner.hook)
        with torch.no_grad():
            self.norm.running_mean.fill_(0.5)
            self.norm.running_var.fill_(3.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.run(self, self.norm(self.linear(x))))


class Inner(nn.Module):
    """Its forward does nothing; others of its functions drop by its mode."""

    dropping = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def method(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5, self.training)

    def generator(self, x: torch.Tensor) -> Any:
        for part in x.split(4, 1):
            yield F.dropout(part, 0.5, self.training)

    def hook(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> Any:
        return F.dropout(output, 0.5, self.training) if self.dropping else None

    @property
    def rate(self) -> float:
        return 0.5 if self.training else 0.0


def by_method(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.inner.method(x)


def by_closure(self: Any, x: torch.Tensor) -> torch.Tensor:
    inner = self.inner
    return (lambda value: F.dropout(value, 0.5, inner.training))(x)


def by_generator(self: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.cat(list(self.inner.generator(x)), 1)


def by_hook(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.inner.dropping = True
    return self.inner(x)


def by_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.drop.forward(x)


def by_flag(self: Any, x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, 0.5, self.linear.training)


def by_two_flags(self: Any, x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, 0.5, self.training and self.inner.training)


def by_rate(self: Any, x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, self.inner.rate, True) if self.inner.rate else x


def by_mask(self: Any, x: torch.Tensor) -> torch.Tensor:
    return x * (torch.rand_like(x) < 0.5) * 2 if self.inner.training else x


def beside_native(self: Any, x: torch.Tensor) -> torch.Tensor:
    norm = self.norm
    x = torch.batch_norm(
        x, None, None, norm.running_mean, norm.running_var, self.training, 0.1, 1e-5, False
    )
    return F.dropout(x, 0.5, self.training)


WAYS = [by_method, by_closure, by_generator, by_hook, by_forward, by_flag, by_two_flags, by_rate]


@pytest.mark.parametrize("way", [*WAYS, by_mask, beside_native])
def test_a_dropout_is_sampled_whosever_mode_it_obeys(way) -> None:
    torch.manual_seed(0)
    model, x = Wrapped(way).eval(), torch.randn(5, 8)
    with torch.no_grad():
        # By hand: what evaluation computes, dropped by half.
        hidden = F.batch_norm(
            model.linear(x), model.norm.running_mean, model.norm.running_var, None, None, False
        )
        if way is beside_native:
            hidden = (hidden - 0.5) / (3 + 1e-5) ** 0.5
        dropped = torch.stack(
            [model.head(2 * hidden * (torch.rand_like(hidden) < 0.5)) for _ in range(4000)]
        )
    expected = dropped.softmax(2)
    before = copy.deepcopy(model.state_dict())
    result = zoo.mc_dropout(model, x, 800)
    torch.testing.assert_close(result.mean, expected.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(result.variance, expected.var(0), rtol=0.3, atol=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_layers_that_chance_leaves_out_are_all_sampled() -> None:
    class LayerDrop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)) for _ in range(6)
            )
            self.head = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                if self.training and torch.rand([]) < 0.5:
                    continue
                x = x + block(x)
            return self.head(x)

    torch.manual_seed(0)
    model, x = LayerDrop(), torch.randn(16, 8)
    result = zoo.mc_dropout(model, x, 400)
    model.eval()
    for block in model.blocks:
        block.train()
    with torch.no_grad():
        expected = torch.stack([model(x).softmax(1) for _ in range(2000)]).var(0)
    assert result.variance.mean() == pytest.approx(float(expected.mean()), rel=0.1)


def test_samples_that_never_vary_are_no_measurement() -> None:
    class Lost(nn.Module):
        def __init__(self, kept: float) -> None:
            super().__init__()
            self.head, self.drop, self.kept = nn.Linear(8, 3), nn.Dropout(0.5), kept

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x) + self.kept * self.head(self.drop(x))

    x = torch.randn(4, 8)
    with pytest.raises(zoo.UserError, match="no prediction of Lost varies over 10 samples"):
        zoo.mc_dropout(Lost(0.0), x, 10)
    assert zoo.mc_dropout(Lost(0.0), x, 1).variance.max() == 0  # one sample cannot vary
    assert zoo.mc_dropout(Lost(1.0), x, 10).variance.max() > 0
    with pytest.raises(zoo.UserError, match="scripted, traced or exported"):
        zoo.mc_dropout(nn.Sequential(nn.Dropout(0.5), torch.jit.script(nn.Linear(8, 3))), x)


def test_a_norm_by_hand_that_shares_its_mode_with_dropout_is_refused() -> None:
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(8))
            self.register_buffer("running_var", torch.ones(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean, var = self.running_mean, self.running_var
            if self.training:
                mean, var = x.mean(0), x.var(0)
                self.running_mean.lerp_(mean, 0.1)
                self.running_var.lerp_(var, 0.1)
            return F.dropout((x - mean) / var.sqrt(), 0.5, self.training)

    model = nn.Sequential(ByHand(), nn.Linear(8, 3))
    with pytest.raises(zoo.UserError, match="0 normalizes by the batch in the mode in which it"):
        zoo.mc_dropout(model, torch.randn(4, 8))
    assert torch.equal(model[0].running_mean, torch.zeros(8))


@pytest.mark.parametrize("kind", ["torch", "numpy", "python"])
def test_a_models_own_generator_is_seeded_and_stays_as_it_was(kind) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 3)
            makers = {
                "torch": lambda: torch.Generator().manual_seed(9),
                "numpy": lambda: np.random.default_rng(9),
                "python": lambda: random.Random(9),
            }
            self.generators = [makers[kind]()]

        def draw(self, x: torch.Tensor) -> torch.Tensor:
            (own,) = self.generators
            if kind == "torch":
                return torch.rand(x.shape, generator=own)
            if kind == "numpy":
                return torch.from_numpy(own.random(x.shape, dtype=np.float32))
            return torch.tensor([[own.random() for _ in row] for row in x])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x * (self.draw(x) < 0.5) if self.training else x)

    torch.manual_seed(0)
    model, x = Own(), torch.randn(4, 8)
    one, again, other = (zoo.mc_dropout(model, x, 8, seed=seed).mean for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    drawn = model.draw(x)
    torch.manual_seed(0)
    assert torch.equal(drawn, Own().draw(x))
    zoo.audit(model, x)
    after = model.draw(x)
    fresh = Own()
    fresh.draw(x)
    assert torch.equal(after, fresh.draw(x))


class Scaled(nn.Module):
    """What it multiplies by is no tensor, so that stacked weights do not hold it."""

    def __init__(self, scale: float = 1.0, decides: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head, self.scale, self.decides = nn.Linear(4, 5), scale, decides

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        if self.decides and x.sum() > 0:
            x = 2 * x
        return self.scale * self.head(x)


def test_like_networks_run_at_once_where_that_gives_the_same() -> None:
    torch.manual_seed(0)
    x = image(12)

    def members(*scales: float, decides: bool = False) -> list[nn.Module]:
        made = [Scaled(scale, decides) for scale in scales]
        for model in made:
            model(torch.randn(8, 3, 12, 12))  # running statistics of its own
            model.eval()
        return made

    def found(models: list[nn.Module]) -> tuple[list[torch.Tensor] | None, list[torch.Tensor]]:
        def loop(x: torch.Tensor) -> list[torch.Tensor]:
            return [model(x) for model in models]

        before = copy.deepcopy([model.state_dict() for model in models])
        with torch.inference_mode():
            at_once = module._at_once(models, x, loop)
            for model, state in zip(models, before, strict=True):
                assert all(torch.equal(value, state[k]) for k, value in model.state_dict().items())
            return at_once, loop(x)

    at_once, expected = found(members(1.0, 1.0, 1.0))
    torch.testing.assert_close(at_once, expected, rtol=0, atol=1e-5)
    assert found(members(1.0, 2.0))[0] is None  # other numbers
    assert found(members(1.0, 1.0, decides=True))[0] is None  # vmap cannot run it
    assert zoo.ensemble(members(1.0, 2.0), x).mean.shape == (4, 5)


def test_an_ensemble_on_a_gpu_runs_like_networks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    models = [Scaled(1.0, decides=False).eval() for _ in range(3)]
    x = image(12)
    expected = zoo.ensemble(models, x)  # on a CPU one after another
    taken: list[bool] = []

    def spy(*arguments: Any) -> Any:
        found = at_once(*arguments)
        taken.append(found is not None)
        return found

    at_once = module._at_once
    monkeypatch.setattr(module, "_at_once", spy)
    monkeypatch.setattr(module, "STACKS", "cpu")
    found = zoo.ensemble(models, x)
    assert taken == [True]
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.mutual_information, expected.mutual_information)
    other = [*models[:2], Scaled(2.0, decides=False).eval()]  # the factor is no weight
    torch.testing.assert_close(
        zoo.ensemble(other, x).mean,
        torch.stack([model(x).softmax(1) for model in other]).mean(0),
        rtol=0,
        atol=1e-6,
    )
    assert taken == [True, False]
    assert zoo.ensemble([models[0], nn.Sequential(models[1])], x).mean.shape == (4, 5)
    assert taken == [True, False]  # not alike


def test_networks_are_alike_by_modules_and_shapes() -> None:
    alike = module._alike
    assert alike([nn.Linear(8, 3), nn.Linear(8, 3)])
    assert not alike([nn.Linear(8, 3), nn.Linear(8, 4)])
    assert not alike([nn.Linear(8, 3), nn.Linear(8, 3).double()])
    assert not alike([nn.Sequential(nn.Linear(8, 3)), nn.Linear(8, 3)])
