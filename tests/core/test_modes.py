from __future__ import annotations

from contextlib import suppress

from torch import nn

import zoo
from zoo.core.modes import evaluating


def test_every_module_comes_back_in_its_own_mode() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    model[1].eval()
    with suppress(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        model[1].train()
        raise RuntimeError  # whatever happens inside
    assert [module.training for module in model.modules()] == [True, True, False, True]


def test_a_frozen_norm_stays_frozen() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    zoo.freeze(model, keep=("2",))
    with evaluating(model):
        pass
    assert not model[1].training
    assert model[2].training
