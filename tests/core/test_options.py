from __future__ import annotations

import pytest

from zoo.core.options import Parser
from zoo.errors import UserError


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--rate=nan", "nan is not a finite number"),
        ("--rate=inf", "inf is not a finite number"),
        ("--rate=1e999", "1e999 is not a finite number"),
        ("--rate=x", "--rate"),
        ("--seed=" + "9" * 30, "is larger than 64 bits"),
        ("--seed=1.5", "--seed"),
        ("--sed=1", "did you mean '--seed'"),
    ],
)
def test_a_wrong_number_is_reported(argument: str, message: str) -> None:
    parser = Parser("sample", "Draws.")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seed", type=int)
    assert parser.parse_args(["--rate=0.5", "--seed=-3"]).seed == -3
    with pytest.raises(UserError, match=message):
        parser.parse_args([argument])
