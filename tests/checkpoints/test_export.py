"""Exported files: run outside the zoo, and kept only if they compute what the network does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._inductor
from torch import Tensor, nn

import zoo
from tests.conftest import needs_fashion_mnist
from zoo.checkpoints import export as module
from zoo.checkpoints.export import ExportError, export
from zoo.checkpoints.recorded import data_of
from zoo.data import Digits, TextFile
from zoo.errors import UserError
from zoo.networks import ResNet, Transformer
from zoo.tasks import ImageClassifier, LanguageModel


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = Digits()
    data.prepare_data()
    return data


@pytest.fixture
def task(digits: Digits) -> ImageClassifier:
    torch.manual_seed(0)
    network = ResNet(num_classes=10, in_channels=1, layers=[1, 1], width=8, stem="small")
    task = ImageClassifier(network)
    task.data_info = digits.describe()
    for norm in network.modules():  # statistics that a fresh network would not have
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return task.eval()


def test_a_file_with_preprocessing_and_probabilities_needs_numpy_alone(
    task: ImageClassifier, digits: Digits, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    task.calibration = {"temperature": 0.7}  # type: ignore[assignment]
    done = export(task, digits, tmp_path / "digits.onnx", preprocessing=True, probabilities=True)
    assert done.agreed == done.samples == digits.sizes()["test"]
    assert done.inputs["images"].endswith("uint8")
    assert done.inputs["images"].startswith("(batch,")

    session = onnxruntime.InferenceSession(str(done.file))
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == list(digits.classes)
    assert json.loads(facts["temperature"]) == 0.7
    assert len(facts["weights_sha256"]) == 64
    images = next(iter(digits.plain("test")))[0][:9]
    found = session.run(None, {"images": images.numpy()})[0]
    normalized = (images.numpy() / 255 - np.array(digits.mean)) / np.array(digits.std)
    with torch.no_grad():
        logits = task.network(torch.from_numpy(normalized).float()).double().numpy() / 0.7
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("format", ["torch-export", pytest.param("onnx", marks=pytest.mark.slow)])
def test_preprocessing_is_that_of_prediction_on_images_of_any_size(
    task: ImageClassifier, digits: Digits, tmp_path: Path, format: Any
) -> None:
    """Of a network that sees the middle of an image, as those of folders do."""
    task.data_info |= {"crop_pct": 0.75, "interpolation": "bicubic"}
    done = export(task, digits, tmp_path / "digits", format, preprocessing=True, probabilities=True)
    assert done.inputs["images"] == "(batch, 1, height, width) uint8"
    if format == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(done.file))
        assert [each.shape for each in session.get_inputs()] == [["batch", 1, "height", "width"]]
        facts = session.get_modelmeta().custom_metadata_map
        assert (json.loads(facts["crop_pct"]), facts["interpolation"]) == (0.75, "bicubic")

        def run(images: Any) -> Any:
            return session.run(None, {"images": images})[0]
    else:
        program = torch.export.load(done.file).module()

        def run(images: Any) -> Any:
            return program(torch.from_numpy(images)).detach().numpy()

    for size in ((8, 8), (40, 13), (7, 100)):
        images = np.random.default_rng(0).integers(0, 256, (3, 1, *size), dtype=np.uint8)
        expected = task.predict([image[0] for image in images])
        assert np.abs(run(images) - expected.numpy()).max() < 1e-5


def test_without_test_images_it_is_compared_on_validation_images(
    task: ImageClassifier, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = digits.sizes()["val"]
    monkeypatch.setattr(digits, "sizes", lambda: {"train": 1257, "val": held_out, "test": 0})
    done = export(task, digits, tmp_path / "digits.pt2", "torch-export")
    assert (done.samples, done.data) == (held_out, "Digits validation images")


def test_torch_export_and_safetensors_give_the_same_logits(
    task: ImageClassifier, digits: Digits, tmp_path: Path
) -> None:
    done = export(task, digits, tmp_path / "digits.pt2", "torch-export")
    extra = {"facts.json": ""}
    program = torch.export.load(done.file, extra_files=extra).module()
    assert json.loads(extra["facts.json"])["mean"] == list(digits.mean)
    images = torch.randn(3, *digits.input_shape)
    with torch.no_grad():
        torch.testing.assert_close(program(images), task.network(images))
    done = export(task, digits, tmp_path / "digits.safetensors", "safetensors")
    assert done.difference == 0
    assert [each.name for each in tmp_path.iterdir()] == [
        each.name for each in tmp_path.iterdir() if ".part" not in each.name
    ]


@pytest.mark.parametrize("format", ["torch-export", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_language_model_takes_texts_of_any_length(tmp_path: Path, format: Any) -> None:
    (tmp_path / "text.txt").write_text("to be, or not to be: that is the question. " * 40)
    data = TextFile(str(tmp_path / "text.txt"), context_length=16, batch_size=8, validation=0.4)
    data.prepare_data()
    size = len(data.facts()["vocabulary"])
    torch.manual_seed(0)
    network = Transformer(size, context_length=16, embed_dim=16, depth=2, num_heads=2)
    task = LanguageModel(network)
    task.data_info = data.describe()
    done = export(task.eval(), data, tmp_path / "file", format)
    assert done.agreed == done.samples
    assert done.samples is not None
    assert done.samples > 500  # characters of the held-out text
    assert done.inputs == {"tokens": "(batch, length) int64"}
    for shape in ((1, 3), (5, 16)):
        tokens = torch.randint(size, shape, generator=torch.Generator().manual_seed(0))
        if format == "onnx":
            found = module.run_onnx(done.file)(tokens)
        else:
            found = torch.export.load(done.file).module()(tokens)
        torch.testing.assert_close(found, network(tokens), atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="are for classifiers, and this is a LanguageModel"):
        export(task, data, tmp_path / "file", format, probabilities=True)


@pytest.mark.parametrize("fault", ["values", "shape", "answers"])
def test_a_file_that_computes_something_else_is_not_kept(
    task: ImageClassifier,
    digits: Digits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    def write(served: Any, file: Path, facts: Any, quantize: Any) -> Any:
        file.write_bytes(b"a program")

        def run(images: Tensor) -> Tensor:
            logits = served.module(images)
            if fault == "values":
                return logits + 0.5
            if fault == "shape":
                return logits[:1]
            few = len(images) > 64  # the test set alone
            return logits.flip(1) if few else logits

        return run

    monkeypatch.setitem(module._WRITERS, "torch-export", write)
    with pytest.raises(ExportError, match="was not written"):
        export(task, digits, tmp_path / "digits.pt2", "torch-export")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "aoti", "quantize": "int8"}, "--quantize int8 is for --format onnx"),
        ({"format": "safetensors", "preprocessing": True}, "leave --with away"),
        ({"format": "tflite"}, "choose one of onnx, torch-export"),
    ],
)
def test_what_does_not_exist_is_refused(
    task: ImageClassifier, digits: Digits, tmp_path: Path, options: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        export(task, digits, tmp_path / "file", **options)


def test_without_a_compiler_nothing_is_compiled(
    task: ImageClassifier, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-c++"))
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and no-such-c\+\+ is none here"):
        export(task, digits, tmp_path / "file", "aoti")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_is_compiled_ahead_of_time_takes_any_size(
    task: ImageClassifier, digits: Digits, tmp_path: Path
) -> None:
    done = export(task, digits, tmp_path / "digits.pt2", "aoti", preprocessing=True)
    assert done.agreed == done.samples == digits.sizes()["test"]
    run = torch._inductor.aoti_load_package(str(done.file))
    images = torch.randint(0, 256, (3, 1, 40, 13), dtype=torch.uint8)
    expected = task.predict(list(images))
    torch.testing.assert_close(run(images).softmax(1), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@needs_fashion_mnist
@pytest.mark.parametrize(("name", "kept"), [("convnet_fmnist", True), ("vit_fmnist", False)])
def test_int8_is_kept_where_it_gives_the_networks_answers(
    name: str, kept: bool, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    task, data, file = zoo.load(name), data_of(name), tmp_path / "int8.onnx"
    if not kept:
        with pytest.raises(ExportError, match=r"for 9,8\d\d of 10,000 .* at least 99\.5% is requi"):
            export(task, data, file, quantize="int8")
        assert not list(tmp_path.iterdir())
        return
    done = export(task, data, file, quantize="int8")
    assert done.samples == 10_000
    assert done.agreed >= 9_950
    weights = onnx.load(str(file)).graph.initializer
    quantized = sum(np.prod(one.dims) for one in weights if one.data_type == onnx.TensorProto.INT8)
    assert quantized > 0.9 * sum(p.numel() for p in task.network.parameters())
    assert file.stat().st_size < 0.35 * 4 * sum(p.numel() for p in task.network.parameters())
