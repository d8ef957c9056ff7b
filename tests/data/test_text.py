from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from tests.conftest import needs_shakespeare
from zoo.data import PythonTopics, Shakespeare, TextFile
from zoo.data.text import IGNORED, Starts, decode, encode
from zoo.errors import UserError


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_text("".join("abcdefghij"[(i * i) % 10] for i in range(1000)), encoding="utf-8")
    return path


def data(path: Path, **options) -> TextFile:
    module = TextFile(str(path), **{"context_length": 8, "batch_size": 4, **options})
    module.setup("fit")
    return module


def test_a_window_is_followed_by_its_own_next_characters(text: Path) -> None:
    module = data(text)
    whole = text.read_text()
    for starts, _ in module.train_dataloader():
        tokens, targets = module.windows(starts, "train")
        for start, row, following in zip(starts.tolist(), tokens, targets, strict=True):
            assert decode(row.tolist(), module.vocabulary) == whole[start : start + 8]
            assert decode(following.tolist(), module.vocabulary) == whole[start + 1 : start + 9]
            assert start + 9 <= 900  # nothing of the held-out end


@pytest.mark.parametrize("context", [7, 8, 33])
def test_validation_predicts_every_character_but_the_first_exactly_once(text, context) -> None:
    module = data(text, context_length=context)
    (sweep,) = module.val_dataloader()
    predicted = []
    for batch in sweep:
        _, targets = module.on_after_batch_transfer(batch, 0)
        predicted += targets[targets != IGNORED].tolist()
    assert decode(predicted, module.vocabulary) == text.read_text()[901:]


def test_several_processes_share_the_sweep_and_draw_other_windows(text: Path) -> None:
    starts, drawn = [], []
    for rank in range(3):
        module = data(text, epoch_steps=5)
        strategy = SimpleNamespace(broadcast=lambda seed: 7)
        module.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=3,
            strategy=strategy,
            state=SimpleNamespace(fn=TrainerFn.FITTING),
        )
        (sweep,) = module.val_dataloader()
        starts += [start for batch, _ in sweep for start in batch.tolist()]
        drawn.append(torch.cat([batch for batch, _ in module.train_dataloader()]))
        assert len(drawn[-1]) == 5 * 4
    assert sorted(starts) == list(range(0, 99, 8))
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


@pytest.mark.parametrize("processes", [1, 3])
def test_a_pass_draws_each_part_of_the_text_once_and_goes_on_in_the_next_epoch(processes) -> None:
    # 12 windows a pass; an epoch takes 6, in batches of all processes together.
    loaders = [
        Starts(100, 8, 6 // (2 * processes), 2, seed=3, rank=rank, world=processes)
        for rank in range(processes)
    ]
    epochs = []
    for epoch in range(8):
        drawn = []
        for loader in loaders:
            loader.set_epoch(epoch)
            drawn += [start for batch, _ in loader for start in batch.tolist()]
        epochs.append(drawn)
    passes = [sorted(epochs[i] + epochs[i + 1]) for i in range(0, 8, 2)]
    for starts in passes:
        assert starts == list(range(starts[0], starts[0] + 12 * 8, 8))
        assert starts[-1] < 100
    assert len({starts[0] for starts in passes}) > 1  # offsets differ
    assert epochs[0] != sorted(epochs[0])


def test_with_replacement_windows_start_anywhere(text: Path) -> None:
    torch.manual_seed(1)
    loader = data(text, epoch_steps=300, replacement=True).train_dataloader()
    drawn = torch.cat([batch for batch, _ in loader])
    assert len(drawn) == 1200
    # Of 892 places 1 - 1/e^(1200/892) are drawn at least once: 659, and 11 as a standard deviation.
    assert 600 < len(drawn.unique()) < 720


def test_a_text_of_one_window_is_drawn_again_and_again(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("abcdefghij" * 2 + "abc", encoding="utf-8")  # 12 characters to train on
    loader = data(short, context_length=10, validation=0.45, epoch_steps=3).train_dataloader()
    drawn = [start for batch, _ in loader for start in batch.tolist()]
    assert len(drawn) == 12
    assert set(drawn) == {0, 1}


def test_an_epoch_is_resumed_with_the_batch_that_would_have_come_next(text: Path) -> None:
    torch.manual_seed(5)
    loader = data(text, epoch_steps=6).train_dataloader()
    whole = [batch.tolist() for batch, _ in loader]
    stopped = data(text, epoch_steps=6).train_dataloader()
    iterator = iter(stopped)
    for _ in range(2):
        next(iterator)
    resumed = data(text, epoch_steps=6).train_dataloader()
    resumed.load_state_dict(stopped.state_dict())
    assert [batch.tolist() for batch, _ in resumed] == whole[2:]
    loader.set_epoch(1)
    assert [batch.tolist() for batch, _ in loader] != whole
    assert len(loader.fresh()) == 6


def test_without_epoch_steps_an_epoch_covers_the_text_once(text: Path) -> None:
    assert len(data(text).train_dataloader()) == (900 - 8) // (8 * 4)


def test_choosing_never_looks_at_the_last_tenth(text: Path) -> None:
    whole = text.read_text()
    module = data(text, choosing=True)
    assert module.sizes() == {"train": 800, "val": 100}
    (sweep,) = module.val_dataloader()
    seen = torch.cat([module.on_after_batch_transfer(b, 0)[1].flatten() for b in sweep])
    kept = decode(seen[seen != IGNORED].tolist(), module.vocabulary)
    assert kept == whole[801:900]


def test_text_becomes_tokens_and_text_again(text: Path) -> None:
    assert decode(encode("badge", "abcdefg").tolist(), "abcdefg") == "badge"
    with pytest.raises(
        UserError, match=r"holds 'z' at character 2, which is not in the vocabulary of"
    ):
        encode("abz", "abc")


def test_bytes_that_are_no_text_are_named_with_their_offset(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"fine until caf" + b"\xe9 and on")
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8 text: byte 0xe9 at offset 14"):
        data(path)
    with pytest.raises(UserError, match="no such file"):
        data(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": 0}, "at least 1"),
        ({"epoch_steps": 0}, "data.epoch_steps is 0"),
        ({"validation": 0.5}, "data.validation is 0.5"),
        ({"context_length": 200}, "give a smaller data.context_length"),
    ],
)
def test_bad_options_are_refused(text: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data(text, **options)


# -- Shakespeare -----------------------------------------------------------------------------------


@needs_shakespeare
def test_the_real_shakespeare() -> None:
    module = Shakespeare(context_length=64)
    module.setup("fit")
    assert module.sizes() == {"train": 1_003_854, "val": 111_540}  # as nanoGPT has them
    assert len(module.vocabulary) == 65
    assert sorted(set(module.read())) == list(module.vocabulary)
    assert decode(module._tokens["train"][:13].tolist(), module.vocabulary) == "First Citizen"
    assert "instead_of" not in module.describe()


def test_without_shakespeare_pythons_manual_stands_in_and_says_so(tmp_path, monkeypatch) -> None:
    def down(*_, **__):
        raise OSError("the network is unreachable")

    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", down)
    with pytest.raises(UserError, match=r"Set ZOO_DATA to a folder that holds tinyshakespeare"):
        Shakespeare().prepare_data()
    module = Shakespeare(context_length=32, fallback="python")
    with pytest.warns(UserWarning, match="TRAINING ON PYTHONTOPICS INSTEAD"):
        module.setup("fit")
    described = module.describe()
    assert described["name"] == "PythonTopics"
    assert described["instead_of"] == "Shakespeare"
    assert described["vocabulary"] == Shakespeare.vocabulary
    assert module.sizes()["train"] > 100_000
    assert "statement" in PythonTopics().read()


def test_a_damaged_shakespeare_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_text("To be or not")
    with pytest.raises(UserError, match=r"input\.txt is truncated or altered"):
        Shakespeare(fallback="python").prepare_data()


class Trained(torch.nn.Module):
    """A task as a data module sees it: a network, and what it was trained on."""

    def __init__(self, vocab_size: int, vocabulary: str | None) -> None:
        super().__init__()
        self.network = torch.nn.Module()
        self.network.vocab_size = vocab_size
        self.data_info = {} if vocabulary is None else {"vocabulary": vocabulary}


@pytest.mark.parametrize(
    ("size", "known", "message"),
    [
        (9, None, r"text\.txt has 4 characters, and the network's vocabulary 9: give .*size 4"),
        (3, None, r"text\.txt has 4 characters, and the network's vocabulary 3: give .*size 4"),
        (5, "\nabcd", "trained on 5 characters.*has 4 others: '.n' is only in the model"),
        (4, "abde", "'c' is only in text.txt"),
        (4, "dcba", "their order differs"),
    ],
)
def test_characters_are_never_renumbered_in_silence(
    tmp_path: Path, size: int, known: str | None, message: str
) -> None:
    (tmp_path / "text.txt").write_text("abcd" * 100)
    module = TextFile(str(tmp_path / "text.txt"), context_length=8)
    module.trainer = SimpleNamespace(lightning_module=Trained(size, known))
    with pytest.raises(UserError, match=message):
        module.setup("fit")
    module.trainer = SimpleNamespace(lightning_module=Trained(4, "abcd"))
    module.setup("fit")
