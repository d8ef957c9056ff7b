"""Our Muon is held against timm's, to rounding, and its parts against what they are for."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import timm.optim
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from zoo.errors import UserError
from zoo.tasks import muon
from zoo.tasks.muon import (
    COEFFICIENTS,
    Muon,
    by_gram_matrices,
    by_matrices,
    is_matrix,
    orthogonalize,
)
from zoo.tasks.optim import make_optimizer


def model(channels_last: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(6, 8, 3), nn.Conv2d(6, 8, 3), nn.Conv2d(6, 8, 1)]
    linear = [nn.Linear(8, 24), nn.Linear(24, 8), nn.Linear(16, 16), nn.LayerNorm(16)]
    made = nn.Sequential(*convolutions, *linear, nn.Embedding(7, 12))
    return made.to(memory_format=torch.channels_last) if channels_last else made


def groups(of: nn.Module) -> list[dict]:
    table = of[-1].weight
    others = [p for p in of.parameters() if p is not table]
    return [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        {"params": [table], "weight_decay": 0.1, "use_fallback": True},
    ]


def steps(of: nn.Module, optimizer: torch.optim.Optimizer, count: int = 3, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in of.parameters():
            # Contiguous, whatever the memory format of its parameter.
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


OPTIONS = [
    {},
    {"nesterov": True, "adjust_lr_fn": "original"},
    {"ns_steps": 7, "momentum": 0.5},
    {"ns_steps": 3, "fallback_lr_scale": 0.3, "betas": (0.0, 0.9)},
]


@pytest.fixture
def timm_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm iterates in bfloat16; ours on a CPU does in float32."""
    iterate = timm.optim.muon.zeropower_via_newtonschulz
    monkeypatch.setattr(
        timm.optim.muon,
        "zeropower_via_newtonschulz",
        lambda *args, **kwargs: iterate(*args, **{**kwargs, "dtype": torch.float32}),
    )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_steps_are_those_of_timms_muon(
    timm_in_float32: None, options: dict, channels_last: bool
) -> None:
    ours, theirs = model(channels_last), model(channels_last)
    steps(ours, Muon(groups(ours), lr=0.1, **options))
    steps(theirs, timm.optim.Muon(groups(theirs), lr=0.1, **options))
    looks_ahead = options.get("nesterov")  # and then timm's fallback is NAdamW
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if looks_ahead and (one.ndim < 2 or name.startswith("7.")):
            continue
        # Steps are about 0.1 large. Squared, a square matrix's least singular values come near
        # float32's precision.
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4, msg=name)


def test_a_saved_state_of_timms_muon_goes_on(timm_in_float32: None) -> None:
    ours, theirs = model(), model()
    other = timm.optim.Muon(groups(theirs), lr=0.1)
    steps(theirs, other)
    saved = io.BytesIO()
    torch.save(other.state_dict(), saved)
    ours.load_state_dict(theirs.state_dict())
    optimizer = Muon(groups(ours), lr=0.1)
    saved.seek(0)
    optimizer.load_state_dict(torch.load(saved, weights_only=True))
    steps(ours, optimizer, seed=2)
    steps(theirs, other, seed=2)
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2e-4)


def test_a_learning_rate_that_is_a_tensor_steps_as_far_as_a_number() -> None:
    one, other = model(), model()
    steps(one, Muon(groups(one), lr=0.1))
    optimizer = Muon(groups(other), lr=0.1)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.1)
        group["capturable"] = False
    matrices = [p for p in other.parameters() if is_matrix(p) and p is not other[-1].weight]
    for group in optimizer.param_groups[1:]:
        group["lr"] = 0.1  # torch's AdamW takes a tensor on its own device only
    steps(other, optimizer)
    assert matrices
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_weights_that_several_devices_share_step_as_whole_ones(tmp_path: Path) -> None:
    """Parameters and gradients as FSDP has them, over one process: DTensors, whole or in parts."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        torch.manual_seed(0)
        plain = [nn.Parameter(torch.randn(8, 12)), nn.Parameter(torch.randn(6, 4, 3, 3))]
        shared = [
            nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [place]))
            for p, place in zip(plain, (Shard(0), Replicate()), strict=True)
        ]
        one, other = Muon(plain, lr=0.1, weight_decay=0.1), Muon(shared, lr=0.1, weight_decay=0.1)
        for _ in range(3):
            for p, q in zip(plain, shared, strict=True):
                p.grad = torch.randn(p.shape)
                q.grad = distribute_tensor(p.grad, mesh, q.placements)
            one.step()
            other.step()
        for p, q in zip(plain, shared, strict=True):
            assert isinstance(q, DTensor)
            assert isinstance(other.state[q]["momentum_buffer"], DTensor)
            torch.testing.assert_close(q.full_tensor(), p, rtol=0, atol=1e-6)
    finally:
        distributed.destroy_process_group()


def test_matrices_of_a_shape_are_iterated_together(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks: list[torch.Size] = []
    iterate = muon.orthogonalize
    monkeypatch.setattr(
        muon, "orthogonalize", lambda x, steps: stacks.append(x.shape) or iterate(x, steps)
    )
    net = model()
    steps(net, Muon(groups(net), lr=0.1), count=1)
    assert sorted(map(tuple, stacks)) == [
        (1, 8, 6),
        (1, 8, 24),
        (1, 16, 16),
        (1, 24, 8),
        (2, 8, 54),
    ]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shape", [(3, 24, 60), (2, 60, 24)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape, half: bool) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    matrices = matrices * torch.logspace(0, -1, shape[1])[:, None]
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        result = orthogonalize(matrices, 5)
    assert result.dtype == torch.float32
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.7
    assert values.max() < 1.3
    # Nearest is the polar factor, which their mean inner product with it compares them to.
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert ((left @ right) * result).sum((1, 2)).div(24).min() > 0.9


def test_what_a_device_with_bfloat16_iterates_is_the_same_to_its_precision() -> None:
    matrices = torch.randn(2, 16, 40, generator=torch.Generator().manual_seed(0))
    exact = by_gram_matrices(matrices, list(COEFFICIENTS))
    torch.testing.assert_close(by_matrices(matrices, list(COEFFICIENTS)), exact, atol=1e-4, rtol=0)
    rounded = by_matrices(matrices.bfloat16(), list(COEFFICIENTS))
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64, 128), True),
        ((8, 3, 3, 3), True),
        ((64,), False),
        ((64, 1, 3, 3), False),
        ((1, 49, 96), False),
        ((2, 64), False),
        ((4, 2048), False),
        ((3, 3, 1, 1), False),
    ],
)
def test_which_parameters_are_matrices_as_timm_has_it(shape, expected: bool) -> None:
    assert is_matrix(torch.empty(shape)) is expected
    assert bool(timm.optim.muon._is_suitable_for_muon(torch.empty(shape))) is expected


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"adjust_lr_fn": "nonsense"}, "adjust_lr_fn is 'nonsense': choose match_rms_adamw or"),
        ({"ns_steps": "many"}, "ns_steps is 'many'"),
        ({"ns_steps": 0}, "ns_steps is 0"),
        ({"betas": [0.9, 1.5]}, "beta 2 is 1.5"),
        ({"ns_coefficients": "best"}, "ns_coefficients"),
    ],
)
def test_settings_of_no_use_are_refused(extra: dict, message: str) -> None:
    with pytest.raises(UserError, match=rf"model\.optimizer.*{message}"):
        make_optimizer(model(), "muon", 0.1, 0, 0.9, extra)


@pytest.mark.parametrize("betas", [[0.9], [0.9, 0.95, 0.99], []])
def test_betas_are_two_numbers(betas: list[float]) -> None:
    with pytest.raises(ValueError, match="must be two numbers"):
        Muon([nn.Parameter(torch.ones(2, 2))], betas=betas)
