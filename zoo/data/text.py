"""Text as characters in memory: random windows to train on, a full sweep to validate on."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from zoo.core.text import counted
from zoo.data.batches import Batches
from zoo.data.module import DataModule
from zoo.errors import UserError

IGNORED = -100  # a target that no loss counts, as torch's cross-entropy has it
# The parts that the loaders of val_dataloader read; outside a fit the last two are there as well.
VALIDATES_ON = ("val", "val", "train")


class Starts(Batches):
    """Batches of window starts, as many an epoch as asked; resumable as all batches are.

    Windows are drawn pass by pass through the text: those of a pass lie end to end from an offset
    drawn anew and come in random order, so that it predicts each character once, but for less than
    two windows at the ends. As many with replacement leave 37 % of the text out. A pass goes on
    from one epoch into the next.

    Args:
        starts: how many places a window may start at.
        length: characters of a window.
        batch_size: windows a batch and process.
        steps: batches an epoch and process.
        replacement: windows start anywhere, whatever was drawn before.
        seed: of the draws.
        rank, world: this process and how many there are.
    """

    def __init__(
        self,
        starts: int,
        length: int,
        batch_size: int,
        steps: int,
        *,
        replacement: bool = False,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        places = torch.arange(starts)
        super().__init__(
            places, places, batch_size, shuffle=True, seed=seed, rank=rank, world=world
        )
        self.length, self.steps, self.replacement = length, steps, replacement

    def __len__(self) -> int:
        return self.steps

    def _order(self) -> Tensor:
        shape = (self.steps, self.world, self.batch_size)
        if self.replacement:
            generator = self._generator(self.epoch)
            drawn = torch.randint(len(self.inputs), shape, generator=generator)
        else:
            drawn = self._passes(self.epoch * math.prod(shape), math.prod(shape)).view(shape)
        return drawn[:, self.rank].flatten()

    def _passes(self, first: int, count: int) -> Tensor:
        """So many windows of all passes one after the other, from the ``first`` on."""
        starts = len(self.inputs)
        windows = max(1, starts // self.length)  # of a pass
        offsets = starts - (windows - 1) * self.length
        drawn = []
        for number in range(first // windows, (first + count - 1) // windows + 1):
            generator = self._generator(number)
            offset = torch.randint(offsets, (1,), generator=generator)
            drawn.append(offset + self.length * torch.randperm(windows, generator=generator))
        return torch.cat(drawn)[first % windows :][:count]


class Text(DataModule):
    """One text, character by character: the first part to train on, the end to validate on.

    A batch is ``(tokens, targets)`` after ``on_after_batch_transfer``, both int64 (B, T): the
    targets are the tokens one place on, ``IGNORED`` beyond the end of the text. Training goes pass
    by pass through windows of it (``Starts``); validation goes through the held-out end window by
    window, so that each character but the first is predicted exactly once.

    A subclass has a vocabulary and implements ``read``, as well as a data module's methods.
    """

    vocabulary: str  # each character's token is its place in here

    def __init__(
        self,
        context_length: int,
        batch_size: int,
        epoch_steps: int | None,
        validation: float,
        choosing: bool,
        fallback: str | None = None,
        replacement: bool = False,
    ) -> None:
        super().__init__(fallback)
        if min(context_length, batch_size) < 1:
            raise UserError("data.context_length and data.batch_size must be at least 1")
        if epoch_steps is not None and epoch_steps < 1:
            raise UserError(f"data.epoch_steps is {epoch_steps}: it must be at least 1")
        if not 0 < validation < 0.5:
            raise UserError(f"data.validation is {validation}: a fraction, above 0, below a half")
        self.context_length, self.batch_size = context_length, batch_size
        self.epoch_steps, self.validation, self.choosing = epoch_steps, validation, choosing
        self.replacement = replacement
        self._tokens: dict[str, Tensor] = {}
        self._on_device: dict[tuple[str, torch.device], Tensor] = {}

    # -- what a subclass says --------------------------------------------------------------------

    @abstractmethod
    def read(self) -> str:
        """Reads the whole text."""

    # -- what all share --------------------------------------------------------------------------

    has_test = False  # the end of the text is what is validated on

    def facts(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary}

    def network_arguments(self) -> dict[str, int]:
        self.prepare_data()
        return {
            "vocab_size": len(self.used.vocabulary),
            "context_length": self.context_length,
        }

    def setup(self, stage: str) -> None:
        """Splits the text; the last tenth is not looked at while ``choosing``."""
        self.prepare_data()
        if not self._tokens:
            used = self.used
            tokens = encode(used.read(), used.vocabulary, used.name)
            end = int(len(tokens) * (1 - self.validation))
            if self.choosing:
                tokens, end = tokens[:end], 2 * end - len(tokens)
            self._tokens = {"train": tokens[:end], "val": tokens[end:]}
            for part, kept in self._tokens.items():
                if len(kept) < self.context_length + 1:
                    raise UserError(
                        f"{used.name}: {counted(len(kept), 'character')} of {part} text, and a "
                        f"window has {self.context_length}: give a smaller data.context_length"
                    )
        task = getattr(self.trainer, "lightning_module", None)
        network = getattr(task, "network", None)
        self._check_vocabulary(network, getattr(task, "data_info", {}).get("vocabulary"))
        context = getattr(network, "context_length", None)
        if context is not None and context < self.context_length:
            raise UserError(
                f"data.context_length is {self.context_length}, and the network sees {context}: "
                f"give --model.network.context_length {self.context_length}"
            )

    def _check_vocabulary(self, network: Any, known: str | None) -> None:
        """Compares the text's characters with those that a network has or was trained on.

        Raises:
            UserError: they differ: tokens would mean other characters than the network learned.
        """
        name, ours = self.used.name, self.used.vocabulary
        if known is not None and known != ours:
            here, there = sorted(set(ours) - set(known)), sorted(set(known) - set(ours))
            difference = "their order differs"
            if here or there:
                difference = f"{(here or there)[0]!r} is only in {name if here else 'the model'}"
            raise UserError(
                f"the model was trained on {counted(len(known), 'character')}, and {name} has "
                f"{counted(len(ours), 'other')}: {difference}, and tokens would mean other "
                "characters than it learned; train a fresh network on this text"
            )
        size = getattr(network, "vocab_size", len(ours))
        if size != len(ours):
            raise UserError(
                f"{name} has {counted(len(ours), 'character')}, and the network's vocabulary "
                f"{size:,}: give --model.network.vocab_size {len(ours)}"
            )

    def sizes(self) -> dict[str, int]:
        """Characters of each part."""
        self.setup("fit")
        return {part: len(tokens) for part, tokens in self._tokens.items()}

    def _place(self) -> tuple[int, int]:
        """This process and how many there are."""
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def train_dataloader(self) -> Starts:
        seed = torch.initial_seed()
        if self.trainer is not None:
            seed = self.trainer.strategy.broadcast(seed)
        rank, world = self._place()
        starts = len(self._tokens["train"]) - self.context_length
        steps = self.epoch_steps
        if steps is None:  # as many characters as the text has
            seen = self.context_length * self.batch_size * world
            steps = max(1, starts // seen)
        return Starts(
            starts,
            self.context_length,
            self.batch_size,
            steps,
            replacement=self.replacement,
            seed=seed % 2**31,
            rank=rank,
            world=world,
        )

    def val_dataloader(self) -> list[Batches]:
        loaders = [self._sweep("val")]  # in the order of VALIDATES_ON
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.VALIDATING:
            loaders.append(self.random_windows(200 * 64))
            seen = len(self._tokens["train"]) - len(self._tokens["val"])
            loaders.append(self._sweep("train", seen))
        return loaders

    def _sweep(self, part: str, first: int = 0) -> Batches:
        last = len(self._tokens[part]) - 1  # is only predicted
        return self._in_order(torch.arange(first, last, self.context_length))

    def _in_order(self, starts: Tensor) -> Batches:
        rank, world = self._place()
        return Batches(starts, starts, max(64, self.batch_size), rank=rank, world=world)

    def random_windows(self, count: int, part: str = "val") -> Batches:
        """Draws random windows of a part, always the same, as nanoGPT does to estimate its loss."""
        generator = torch.Generator().manual_seed(1337)
        starts = torch.randint(
            len(self._tokens[part]) - self.context_length, (count,), generator=generator
        )
        return self._in_order(starts)

    def windows(self, starts: Tensor, part: str) -> tuple[Tensor, Tensor]:
        """Tokens and targets (B, T) of windows that start at (B,)."""
        key = (part, starts.device)
        if key not in self._on_device:
            self._on_device[key] = self._tokens[part].to(starts.device)
        text = self._on_device[key]
        places = starts[:, None] + torch.arange(self.context_length, device=starts.device)
        last = len(text) - 1
        targets = text[(places + 1).clamp_max(last)].masked_fill(places >= last, IGNORED)
        return text[places.clamp_max(last)], targets

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        starts, _ = batch
        training = self.trainer is not None and self.trainer.training
        return self.windows(starts, "train" if training else VALIDATES_ON[dataloader_idx])

    def example_input(self, batch: int = 2) -> Tensor:
        """Tokens (B, T); needs no data."""
        tokens = torch.arange(batch * self.context_length) % 7
        return tokens.view(batch, self.context_length)


def encode(text: str, vocabulary: str, source: str = "the text") -> Tensor:
    """Tokens int64 (T,) of a text.

    Raises:
        UserError: a character that the vocabulary does not have.
    """
    places = {character: place for place, character in enumerate(vocabulary)}
    try:
        return torch.tensor([places[character] for character in text], dtype=torch.long)
    except KeyError as error:
        unknown = error.args[0]
        raise UserError(
            f"{source} holds {unknown!r} at character {text.index(unknown)}, which is not in the "
            f"vocabulary of {counted(len(vocabulary), 'character')}"
        ) from None


def decode(tokens: list[int], vocabulary: str) -> str:
    """Converts tokens to text."""
    return "".join(vocabulary[token] for token in tokens)


class TextFile(Text):
    """Any UTF-8 text file, character by character.

    Args:
        path: the file.
        context_length: characters of a window.
        batch_size: windows a batch and process.
        epoch_steps: batches an epoch; by default as many as cover the text once.
        validation: the fraction at the end that is held out.
        choosing: leaves the held-out end alone and validates on as much before it, for choosing
            settings.
        replacement: training windows start anywhere, each drawn independently; else they are drawn
            pass by pass through the text (``Starts``).

    Raises:
        UserError: no such file, or bytes that are no UTF-8.
    """

    def __init__(
        self,
        path: str,
        context_length: int = 256,
        batch_size: int = 32,
        epoch_steps: int | None = None,
        validation: float = 0.1,
        choosing: bool = False,
        replacement: bool = False,
    ) -> None:
        super().__init__(
            context_length,
            batch_size,
            epoch_steps,
            validation,
            choosing,
            replacement=replacement,
        )
        self.path = Path(path)
        self.name = self.path.name
        self._text: str | None = None

    @property
    def vocabulary(self) -> str:  # type: ignore[override]
        return "".join(sorted(set(self.read())))

    def fetch(self) -> None:
        self.read()

    def read(self) -> str:
        if self._text is None:
            if not self.path.is_file():
                raise UserError(f"data.path: no such file: {self.path}")
            try:
                self._text = self.path.read_bytes().decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{self.path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at "
                    f"offset {error.start}: convert the file to UTF-8"
                ) from None
        return self._text

    def checksums(self) -> dict[str, str]:
        return {self.name: hashlib.sha256(self.path.read_bytes()).hexdigest()}
