"""Every network as another program of torch's: with a free batch size, and the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.networks.harness import CASES, Case

# One of each kind in the everyday suite, in the order of the harness; the slow tests take all.
FIRST = list({case.name: case for case in reversed(CASES)}.values())[::-1]


def batch_of(case: Case, count: int) -> tuple[Tensor, ...]:
    inputs = case.inputs()
    return tuple(each.repeat(count, *[1] * (each.ndim - 1))[:count] for each in inputs)


def exported(network: nn.Module, case: Case) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    inputs = batch_of(case, 2)
    return torch.export.export(network, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))


def outputs(result: object) -> Tensor:
    """The logits, or the images, of what a network returns."""
    return result[0] if isinstance(result, tuple) else result  # type: ignore[return-value]


def check_export(case: Case) -> None:
    network = case.build().eval()
    program = exported(network, case).module()
    for count in (1, 5):
        inputs = batch_of(case, count)
        torch.testing.assert_close(outputs(program(*inputs)), outputs(network(*inputs)))


def check_trace(case: Case) -> None:
    network = case.build().eval()
    traced = torch.jit.trace(network, batch_of(case, 2), check_trace=False)
    inputs = batch_of(case, 5)
    torch.testing.assert_close(outputs(traced(*inputs)), outputs(network(*inputs)))


@pytest.mark.parametrize("case", FIRST, ids=str)
@torch.no_grad()
def test_it_exports_with_a_free_batch_size(case: Case) -> None:
    check_export(case)
    check_trace(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_every_form_exports_traces_compiles_and_runs_in_onnx_runtime(
    case: Case, tmp_path: Path
) -> None:
    check_export(case)
    check_trace(case)
    network = case.build().eval()
    inputs = batch_of(case, 5)
    # torch compiles its own LSTM only where this is set.
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(network, fullgraph=True, backend="eager")
        torch.testing.assert_close(outputs(compiled(*inputs)), outputs(network(*inputs)))

    import onnxruntime

    file = tmp_path / "network.onnx"
    torch.onnx.export(exported(network, case), dynamo=True, verbose=False).save(str(file))
    session = onnxruntime.InferenceSession(str(file))
    for count in (1, 5):
        inputs = batch_of(case, count)
        names = [each.name for each in session.get_inputs()]
        given = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
        found = torch.from_numpy(session.run(None, given)[0])
        torch.testing.assert_close(found, outputs(network(*inputs)), atol=1e-4, rtol=1e-3)
