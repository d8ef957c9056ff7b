from __future__ import annotations

import csv
import functools
import json
import operator
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo.data import ImageFolder, checking
from zoo.data.listing import describe
from zoo.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


def paint(folder: Path, count: int, color: tuple[int, int, int]) -> None:
    """Images of several sizes and formats, all of one color, none of them with equal bytes."""
    folder.mkdir(parents=True)
    for index in range(count):
        path = folder / f"{index}.{('png', 'jpg')[index % 2]}"
        Image.new("RGB", (40 + 8 * index, 48), color).save(path)
        path.write_bytes(path.read_bytes() + str(path).encode())  # decoders stop before it


MINE = """
model:
  class_path: zoo.tasks.ImageClassifier
  init_args:
    network:
      class_path: zoo.networks.ResNet
      init_args: {{num_classes: 2, layers: [1], width: 4, stem: small}}
data:
  class_path: zoo.data.ImageFolder
  init_args: {{folder: {folder}, image_size: 32, batch_size: 4, workers: 0, test: 0.2}}
trainer: {{max_epochs: 2}}
"""


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    root = tmp_path / "flat"
    paint(root / "red", 10, (250, 0, 0))
    paint(root / "blue", 10, (0, 0, 250))
    return root


@pytest.fixture
def split(tmp_path: Path) -> Path:
    root = tmp_path / "split"
    for part, count in (("train", 6), ("val", 3)):
        paint(root / part / "red", count, (250, 0, 0))
        paint(root / part / "blue", count, (0, 0, 250))
    return root


def data(folder: Path, **options: Any) -> ImageFolder:
    options = {"image_size": 32, "batch_size": 4, "workers": 0, **options}
    module = ImageFolder(str(folder), **options)
    module.setup("fit")
    return module


def test_folds_hold_each_image_of_a_folder_out_once(flat: Path, split: Path) -> None:
    folds = [data(flat, test=0.2, folds=4, fold=fold) for fold in range(4)]
    assert len({tuple(fold.files("test")) for fold in folds}) == 1
    held_out = [file for fold in folds for file in fold.files("validation")]
    assert len(held_out) == len(set(held_out)) == 16  # of 20, 4 are tested
    for fold in folds:
        parts = [fold.files(part) for part in ("train", "validation", "test")]
        assert sorted(functools.reduce(operator.iadd, parts, [])) == sorted(
            held_out + folds[0].files("test")
        )
    with pytest.raises(UserError, match="move them to the training images"):
        data(split, folds=4, fold=0).contents()
    with pytest.raises(UserError, match="has 8 images, which cannot be in 9 folds"):
        data(flat, test=0.2, folds=9, fold=0).contents()


def test_the_training_sample_has_every_class_and_no_more_than_validation(flat: Path) -> None:
    module = data(flat, validation=0.2, test=0.2)
    labels = torch.cat([labels for _, labels, _ in module.training_sample()])
    assert len(labels) == module.sizes()["val"] == 4
    assert labels.bincount().tolist() == [2, 2]


def test_a_flat_folder_is_split_by_fraction_alike_in_every_class(flat: Path) -> None:
    one = data(flat, validation=0.2, test=0.1)
    assert one.classes == ["blue", "red"]
    assert {part: len(items) for part, items in one.contents().parts.items()} == {
        "train": 14,
        "val": 4,
        "test": 2,
    }
    paths = [path for items in one.contents().parts.values() for path, _ in items]
    assert len(set(paths)) == 20
    torch.manual_seed(1)  # the seed of a run does not move it
    assert data(flat, validation=0.2, test=0.1).contents().parts == one.contents().parts


def test_folders_decide_the_split_where_there_are_any(split: Path) -> None:
    module = data(split)
    assert [len(module.contents().parts[part]) for part in ("train", "val", "test")] == [12, 6, 0]
    assert not module.has_test
    with pytest.raises(UserError, match="has no test images"):
        module.test_dataloader()


def test_validation_images_come_from_the_training_ones_where_they_have_no_folder(
    split: Path,
) -> None:
    (split / "val").rename(split / "test")
    module = data(split, validation=0.3, test=0.1)
    parts = module.contents().parts
    assert [len(parts[part]) for part in ("train", "val", "test")] == [8, 4, 6]
    assert {path.parts[-3] for path, _ in parts["train"] + parts["val"]} == {"train"}
    assert not set(parts["train"]) & set(parts["val"])
    assert {path.parts[-3] for path, _ in parts["test"]} == {"test"}


def test_images_labels_and_normalization(flat: Path) -> None:
    module = data(flat, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    for loader in (module.train_dataloader(), module.val_dataloader()):
        for batch in loader:
            assert batch[0].dtype == torch.uint8
            images, labels = module.on_after_batch_transfer(batch, 0)
            assert images.shape[1:] == (3, 32, 32)
            red = images[:, 0].mean((1, 2)) > images[:, 2].mean((1, 2))
            assert torch.equal(red.long(), labels)


@pytest.mark.parametrize("mixer", ["mixup", "cutmix"])
def test_mixing_gives_shares_of_labels_in_training_only(flat: Path, mixer: str) -> None:
    module = data(flat, **{mixer: 1.0})
    batch = next(iter(module.train_dataloader()))
    assert module.on_after_batch_transfer(batch, 0)[1].ndim == 1
    before = module.on_after_batch_transfer(batch, 0)[0]
    module.trainer = SimpleNamespace(
        training=True,
        predicting=False,
        global_rank=0,
        fit_loop=SimpleNamespace(total_batch_idx=3),
    )
    images, labels = module.on_after_batch_transfer(batch, 0)
    assert not torch.equal(images, before)
    assert torch.equal(images, module.on_after_batch_transfer(batch, 0)[0])  # step by step
    module.trainer.global_rank = 1
    assert not torch.equal(images, module.on_after_batch_transfer(batch, 0)[0])
    assert labels.shape == (4, 2)
    torch.testing.assert_close(labels.sum(1), torch.ones(4))


@pytest.mark.parametrize("size", [1, 3])
def test_a_batch_of_one_or_of_odd_size_is_mixed_by_either(flat: Path, size: int) -> None:
    module = data(flat, batch_size=size, mixup=1.0, cutmix=1.0, randaugment=0, flip=False)
    batch = next(iter(module.train_dataloader()))
    plain = module.on_after_batch_transfer(batch, 0)[0]
    loop = SimpleNamespace(total_batch_idx=0)
    module.trainer = SimpleNamespace(
        training=True, predicting=False, global_rank=0, num_devices=1, fit_loop=loop
    )
    for loop.total_batch_idx in range(8):  # now the one, now the other
        images, labels = module.on_after_batch_transfer(batch, 0)
        assert images.shape == plain.shape
        torch.testing.assert_close(labels.sum(1), torch.ones(size))
        if size == 1:  # mixed with itself
            torch.testing.assert_close(images, plain)


def test_augmentation_treats_each_image_for_itself(flat: Path) -> None:
    torch.manual_seed(0)
    module = data(flat, randaugment=20)
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    augmented = module.augment(image.expand(16, -1, -1, -1))
    assert augmented.dtype == torch.uint8
    assert len({one.numpy().tobytes() for one in augmented}) > 8


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_an_unreadable_image_of_any_part_is_named_before_the_first_step(
    split: Path, part: str
) -> None:
    for name in ("red", "blue"):
        paint(split / "test" / name, 3, (9, 9, 9))
    broken = split / part / "red" / "broken.png"
    broken.write_bytes((split / "train" / "red" / "0.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"red/broken\.png cannot be read as an image: .* skip$"):
        data(split)
    with pytest.warns(UserWarning, match=r"1 of its files .* is not read, .*broken\.png"):
        module = data(split, corrupt="skip")
    assert module.sizes() == {"train": 12, "val": 6, "test": 6}


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_found(flat: Path, suffix: str) -> None:
    """Its head can be read."""
    from PIL import Image

    whole = flat / "red" / f"cut.{suffix}"
    Image.effect_noise((64, 64), 50).convert("RGB").save(whole)
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cut"):
        data(flat)


def test_one_that_breaks_after_it_was_opened_is_named(flat: Path) -> None:
    module = data(flat, test=0.0)
    path, _ = module.contents().parts["val"][0]
    path.write_bytes(b"gone")
    batches = list(module.val_dataloader())
    with pytest.raises(UserError, match=f"{path.name} cannot be read as an image.*has changed"):
        module.on_after_batch_transfer(batches[0], 0)


def test_advice_that_was_followed_is_not_repeated(split: Path) -> None:
    for name in ("red", "blue"):
        paint(split / "test" / name, 3, (9, 9, 9))
    (split / "test" / "red" / "0.png").write_bytes(b"")
    module = data(split, corrupt="skip")
    with pytest.raises(UserError, match=r"0\.png is empty \(0 bytes\)\. .* is for every file$"):
        module.setup("predict")


def test_what_is_not_read_is_counted_and_named(flat: Path) -> None:
    png = (flat / "red" / "0.png").read_bytes()
    for folder in (".ipynb_checkpoints", "@eaDir"):
        (flat / "red" / folder).mkdir()
        (flat / "red" / folder / "0.png").write_bytes(png)
    (flat / "red" / "photos.png").mkdir()  # a folder, whatever its name
    (flat / "red" / "photos.png" / "inner.png").write_bytes(png + b"another")
    for name in ("a.heic", "b.heic", "Thumbs.db"):
        (flat / "blue" / name).write_bytes(png)
    before = {path.name for path in (flat / "red").glob("*.*g") if path.is_file()}
    with pytest.warns(UserWarning, match="5 of its files and folders are not read"):
        module = data(flat)
    report = module.report()
    assert "left out: 5" in report
    for line in ("2 hidden:", "2 the format '.heic' is not read:", "1 the format '.db' is not"):
        assert line in report
    red = [
        path for items in module.contents().parts.values() for path, label in items if label == 1
    ]
    assert {path.name for path in red} == before | {"inner.png"}
    assert all("eaDir" not in str(path) and ".ipynb" not in str(path) for path in red)


@pytest.mark.parametrize("inner", ["\udcff\udcfe", "red/\udcff.png"])
def test_a_name_that_is_not_utf8_is_refused(flat: Path, inner: str) -> None:
    path = Path(str(flat / inner))
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if path.parent == flat else path.write_bytes(b"x")
    with pytest.raises(UserError, match="not UTF-8: rename it"):
        data(flat)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("resnet50_imagefolder", ["--model.network.width", "8"]),
        (
            "vit_small_imagefolder",
            ["--model.network.embed_dim", "24"],
        ),
    ],
)
def test_recipes_train_on_it_and_the_classes_travel_with_the_weights(
    zoo_cli, flat: Path, recipe: str, options: list[str]
) -> None:
    common = ["--data.folder", str(flat), "--data.image_size", "32", "--data.batch_size", "4"]
    common += ["--data.workers", "0", "--trainer.max_epochs", "1"]
    typed = ["--model.network.num_classes", "5"]
    result = zoo_cli("fit", "--recipe", recipe, *options, *common, *typed)
    assert result.code == 2
    assert "has 2 classes, and the network 5 outputs" in result.err
    common += ["--trainer.limit_train_batches", "2"]
    result = zoo_cli("fit", "--recipe", recipe, *options, *common)
    assert result.code == 0, result.err
    model = zoo.load(next(Path(f"runs/{recipe}").glob("*/checkpoints/last.ckpt")))
    assert model.data_info["classes"] == ["blue", "red"]
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_stops_a_fit_in_a_line_or_is_skipped(
    zoo_cli, flat: Path, workers: int
) -> None:
    for index in range(4):  # more than the split takes out of training
        (flat / "red" / f"{index}.{('png', 'jpg')[index % 2]}").write_bytes(b"no image")
    Path("mine.yaml").write_text(MINE.format(folder=flat))
    options = ["--data.workers", str(workers), "--trainer.max_epochs", "1"]
    result = zoo_cli("fit", "--recipe", "mine.yaml", *options)
    assert result.code == 2
    assert "cannot be read as an image" in result.err
    assert "Traceback" not in result.err
    result = zoo_cli("fit", "--recipe", "mine.yaml", *options, "--data.corrupt", "skip")
    assert result.code == 0, result.err
    assert "  4 unreadable:\n    red/" in result.out


def test_other_classes_than_the_checkpoints_are_refused(zoo_cli, flat: Path) -> None:
    Path("mine.yaml").write_text(MINE.format(folder=flat))
    assert zoo_cli("fit", "--recipe", "mine.yaml").code == 0
    (flat / "blue").rename(flat / "violet")  # now red comes first
    for command in ("test", "fit"):
        result = zoo_cli(command, "--recipe", "mine.yaml", "--ckpt_path", "last")
        assert result.code == 2
        assert "class 0 is 'blue' there and 'red' here" in result.err


def test_predictions_name_the_files(zoo_cli, flat: Path) -> None:
    Path("mine.yaml").write_text(MINE.format(folder=flat))
    assert zoo_cli("fit", "--recipe", "mine.yaml").code == 0
    assert zoo_cli("predict", "--recipe", "mine.yaml", "--ckpt_path", "last").code == 0
    with Path("runs/mine/version_1/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == data(flat, test=0.2).files("test")
    assert all((flat / row["file"]).is_file() for row in rows)


def test_an_image_more_in_one_class_leaves_the_other_split_as_it_was(flat: Path) -> None:
    before = data(flat).files("train")
    Image.new("RGB", (40, 48)).save(flat / "blue" / "new.png")
    after = data(flat).files("train")
    assert [name for name in before if "red" in name] == [name for name in after if "red" in name]
    assert len(after) == len(before) + 1


def test_a_folder_without_test_images_is_trained_on_and_not_tested(zoo_cli, split: Path) -> None:
    Path("mine.yaml").write_text(MINE.format(folder=split))
    result = zoo_cli("fit", "--recipe", "mine.yaml")
    assert result.code == 0, result.err
    assert "val/accuracy" in result.out
    assert "test/accuracy" not in result.out


def test_a_run_on_it_is_measured_and_published(zoo_cli, flat: Path) -> None:
    Path("mine.yaml").write_text(MINE.format(folder=flat))
    assert zoo_cli("fit", "--recipe", "mine.yaml").code == 0
    run = "runs/mine/version_0"
    done = zoo_cli("publish", run, "--name", "mine", "--to", "out")
    assert done.code == 0, done.err
    config = json.loads(Path("out/mine/config.json").read_text())
    assert config["samples"] == {"train": 14, "val": 2, "test": 4}
    assert config["data"]["classes"] == ["blue", "red"]
    # Its one warning is that of batches of four.
    assert config["proof"]["audit"] == {"error": 0, "warning": 1, "info": 0}
    card = Path("out/mine/README.md").read_text()
    assert "It was trained on flat only" in card
    assert "one of its 2 classes" in card
    measured = zoo_cli(
        *("uncertainty", "--recipe", "mine.yaml", "--ckpt_path", f"{run}/checkpoints/last.ckpt"),
        *("--ood", "digits", "--json"),
    )
    assert measured.code == 0, measured.err
    content = json.loads(measured.out)
    assert content["images"] == 4
    assert content["rows"]["one forward"]["auroc_ood"] is not None
    assert Path("runs/mine/uncertainty/certainty.png").stat().st_size > 10_000


def test_a_folder_without_test_images_is_not_published(zoo_cli, split: Path) -> None:
    Path("mine.yaml").write_text(MINE.format(folder=split))
    assert zoo_cli("fit", "--recipe", "mine.yaml").code == 0
    done = zoo_cli("publish", "runs/mine/version_0", "--name", "mine", "--to", "out")
    assert done.code == 2
    assert "has no test images" in done.err
    assert not Path("out").exists()


def test_several_processes_see_each_image_exactly_once(split: Path) -> None:
    module = data(split)
    seen: list[int] = []
    for rank in range(4):  # six images of validation: two processes have two, two have one
        module.trainer = SimpleNamespace(
            training=False, predicting=False, global_rank=rank, world_size=4, num_devices=4
        )
        batches = [labels.tolist() for _, labels, _ in module.val_dataloader()]
        assert sum(map(len, batches)) in (1, 2)
        seen += [label for batch in batches for label in batch]
    assert sorted(seen) == [0, 0, 0, 1, 1, 1]
    module.trainer = SimpleNamespace(global_rank=0, world_size=7)
    with pytest.raises(UserError, match="fewer val images than processes"):
        module.val_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0.0}, "data.validation is 0.0"),
        ({"randaugment": 31}, "data.randaugment is 31"),
        ({"scale": 0.0}, "data.scale is 0.0"),
        ({"mixup": -1.0}, "cannot be negative"),
        ({"workers": -1}, "data.workers is -1"),
        ({"std": [0.2, 0.0, 0.2]}, "std is above 0"),
        ({"mean": [0.5], "std": [0.2] * 3}, "a number for each of data.channels"),
        ({"mean": [0.5], "channels": 3}, "a number for each of data.channels"),
        ({"channels": 2}, "data.channels is 2"),
        ({"background": "whit"}, "'whit', which is not a color"),
        ({"sampling_weights": [1.0]}, "has 1 number for 2 classes"),
        ({"corrupt": "ignore"}, "choose error or skip"),
        ({"validation": 0.9, "test": 0.1}, "none is left to train on"),
    ],
)
def test_bad_options_are_refused(flat: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data(flat, **options).train_dataloader()


def test_bad_folders_are_named(flat: Path, split: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.folder is missing: give --data\.folder PATH"):
        ImageFolder().prepare_data()
    with pytest.raises(UserError, match=r"no such folder: .*nowhere"):
        data(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: 0 sub-folders"):
        data(tmp_path / "empty")
    (flat / "green").mkdir()
    with pytest.raises(UserError, match="green: no image in it"):
        data(flat)
    paint(split / "val" / "green", 1, (0, 255, 0))
    with pytest.raises(UserError, match="green: a class that the training images do not have"):
        data(split)


# -- the check -------------------------------------------------------------------------------------


def gradient(path: Path, seed: int, mode: str = "RGB") -> None:
    """An image whose bytes no other seed has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Two classes in three splits, with a file of every kind that is left out."""
    root = tmp_path / "odd"
    seed = 0
    for part, count in (("train", 6), ("valid", 2), ("test", 2)):
        for name in ("brick", "grass"):
            for index in range(count):
                mode = "L" if (part, index) == ("train", 0) else "RGB"
                gradient(root / part / name / f"{index}.png", seed := seed + 1, mode)
    brick = root / "train" / "brick"
    (brick / "zero.png").write_bytes(b"")
    (brick / "cut.png").write_bytes((brick / "1.png").read_bytes()[:200])
    (brick / ".hidden.png").write_bytes((brick / "1.png").read_bytes())
    (brick / "raw.heic").write_bytes(b"ftypheic")
    (brick / "copy.png").write_bytes((root / "test" / "grass" / "0.png").read_bytes())
    (root / "valid" / "brick" / "copy.tif").write_bytes(
        (root / "test" / "brick" / "1.png").read_bytes()
    )
    (root / "loose.png").write_bytes((brick / "2.png").read_bytes())
    (root / "extra").mkdir()
    (brick / "link").symlink_to(root / "test")
    return root


def test_the_table_counts_every_image_and_names_what_is_left_out(odd: Path) -> None:
    module = ImageFolder(str(odd), corrupt="skip", workers=0)
    report = module.report().splitlines()
    assert report[:6] == [
        f"{odd}: 20 images of 2 classes",
        "  class  train    val   test",
        "  brick      6      2      2",
        "  grass      6      2      2",
        "  total     12      4      4",
        "grayscale: 2 images, read as three equal channels",
    ]
    left = "\n".join(report[6:])
    assert left.startswith("left out: 9\n")
    for reason in (
        "1 empty:\n    train/brick/zero.png is empty (0 bytes)",
        "1 unreadable:\n    train/brick/cut.png cannot be read as an image: ",
        "1 hidden:\n    train/brick/.hidden.png",
        "1 the format '.heic' is not read:\n    train/brick/raw.heic",
        "2 the same bytes in two splits:",
        "1 a link to a folder:\n    train/brick/link",
    ):
        assert f"  {reason}" in left
    start = left.index("  2 next to the folders train, val and test:")
    assert {"    extra", "    loose.png"} <= set(left[start:].splitlines())
    # Of two equal files the one that is measured on stays.
    names = {part: set(module.files(part)) for part in ("train", "validation", "test")}
    assert {"test/grass/0.png", "test/brick/1.png"} <= names["test"]
    assert "valid/brick/copy.tif" not in names["validation"]
    assert "train/brick/copy.png" not in names["train"]


def test_files_are_read_again_only_after_they_have_changed(
    flat: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    check = checking._check
    monkeypatch.setattr(checking, "_check", lambda file: (read.append(file.name), check(file))[1])
    data(flat)
    assert len(read) == 20
    data(flat)
    assert len(read) == 20
    changed = flat / "red" / "0.png"
    content = changed.read_bytes()
    changed.write_bytes(content[:-1] + b"!")  # of the same size
    os.utime(changed, ns=(0, 0))
    data(flat)
    assert read[20:] == ["0.png"]
    (cache,) = own_cache.glob("checked/*.json")
    cache.write_text("{")
    data(flat)
    assert len(read) == 41
    monkeypatch.setattr(checking, "cache_folder", lambda: Path("/proc/nowhere"))  # not writable
    data(flat)
    assert len(read) == 61


def test_a_class_that_loses_its_training_images_is_named(split: Path) -> None:
    for path in (split / "train" / "red").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no train image of 'red' is left: .* is empty"):
        data(split, corrupt="skip")


# -- labels from a table ---------------------------------------------------------------------------


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    root = tmp_path / "loose"
    for index in range(24):
        gradient(root / "sub" / f"{index}.png", index)
    return root


def test_a_table_of_labels(loose: Path) -> None:
    table = loose / "labels.csv"
    rows = [f"sub/{index}.png,{(2, 10)[index % 2]}" for index in range(22)]
    table.write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")
    module = ImageFolder(str(loose), labels=str(table), workers=0, validation=0.1, test=0.1)
    with pytest.warns(UserWarning, match="2 of its files and folders are not read"):
        assert module.sizes() == {"train": 18, "val": 2, "test": 2}
    assert module.classes == ["2", "10"]  # by value
    for path, label in module.contents().parts["train"]:
        assert label == int(path.stem) % 2
    assert "2 without a label in labels.csv:\n    sub/22.png\n    sub/23.png" in module.report()


def test_a_table_may_name_its_columns_and_the_splits(loose: Path) -> None:
    table = loose / "labels.tsv"
    rows = ["label\tsplit\tpath"]
    splits = ["train"] * 6 + ["valid"] * 2 + ["test"] * 4
    for index, name in enumerate(splits * 2):
        rows.append(f"{'ab'[index % 2]}\t{name}\tsub/{index}.png")
    table.write_text("\n".join(rows))
    module = ImageFolder(str(loose), labels=str(table), workers=0)
    assert module.sizes() == {"train": 12, "val": 4, "test": 8}
    assert module.class_counts().tolist() == [6, 6]
    assert module.files("validation") == [f"sub/{index}.png" for index in (6, 7, 18, 19)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["sub/0.png,a", "sub/1.png"], r"labels.csv:2: 'sub/1.png' is not a path and a label"),
        (["sub/0.png,a", "sub/0.png,b"], r"labels.csv:2: sub/0.png has a label already, in line 1"),
        (["sub/0.png,a", "sub/1.png,a"], "1 class of training images, and there must be two"),
        (
            ["path,label,split", "sub/0.png,a,train", "sub/1.png,b,tset"],
            r"labels.csv:3: split is 'tset': write train, val or test",
        ),
        (
            ["path,label,split", "sub/0.png,cat,train", "sub/1.png,dog,train", "sub/2.png,cta,val"],
            r"labels.csv:4: 'cta' is a class that the training images do not have; did you mean",
        ),
        ([f"sub/{i}.png,{'ab'[i % 2]}" for i in range(25)], r"sub/24.png cannot be read .*No such"),
    ],
)
def test_a_bad_table_is_named_with_its_line(loose: Path, rows: list[str], message: str) -> None:
    (loose / "labels.csv").write_text("\n".join(rows))
    with pytest.raises(UserError, match=message):
        data(loose, labels=str(loose / "labels.csv"))


# -- channels, and rare classes --------------------------------------------------------------------


def test_channels_follow_the_images_and_can_be_chosen(tmp_path: Path) -> None:
    root = tmp_path / "gray"
    for index in range(20):
        gradient(root / "ab"[index % 2] / f"{index}.png", index, "L")
    module = data(root)
    assert (module.channels, module.mean, module.std) == (1, [0.449], [0.226])
    assert module.input_shape == [1, 32, 32]
    assert next(iter(module.train_dataloader()))[0].shape == (4, 1, 32, 32)
    expected = {"num_classes": 2, "in_channels": 1, "image_size": 32}
    assert module.network_arguments() == expected
    color = data(root, channels=3)
    images = next(iter(color.val_dataloader()))[0]
    assert torch.equal(images[:, 0], images[:, 2])
    assert "grayscale: 20 images, read as three equal channels" in color.report()
    gradient(root / "a" / "color.png", 99)
    assert data(root).channels == 3
    assert "color: 1 image, read as grayscale" in data(root, channels=1).report()


def test_balanced_sampling_draws_each_class_as_often(tmp_path: Path) -> None:
    root = tmp_path / "rare"
    for index in range(60):
        gradient(root / ("rare" if index < 10 else "usual") / f"{index}.png", index)
    module = data(root, validation=0.2, test=0.0, sampling_weights="balanced", batch_size=8)
    assert module.class_counts().tolist() == [8, 40]
    torch.manual_seed(0)
    labels = torch.cat([labels for _, labels, _ in module.train_dataloader()])
    assert labels.bincount().tolist() == [24, 24]
    module = data(root, validation=0.2, test=0.0, sampling_weights=[0.0, 1.0], batch_size=8)
    drawn = torch.cat([labels for _, labels, _ in module.train_dataloader()])
    assert drawn.tolist() == [1] * 48


def test_of_many_classes_the_most_frequent_and_the_rarest_are_listed() -> None:
    classes = [f"c{label}" for label in range(50)]
    items = [(Path("x"), label) for label in range(50) for _ in range(label + 1)]
    lines = describe(Path("photos"), classes, {"train": items}, [], []).splitlines()
    assert lines[0] == "photos: 1,275 images of 50 classes"
    assert [line.split()[:2] for line in lines[1:]] == [
        ["class", "train"],
        *[[f"c{label}", str(label + 1)] for label in range(49, 39, -1)],
        ["…", "30"],
        *[[f"c{label}", str(label + 1)] for label in range(9, -1, -1)],
        ["total", "1,275"],
    ]
