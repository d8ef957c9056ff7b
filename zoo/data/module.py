"""What every data module has: a name, a place on disk or a stand-in, and a description."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn

from zoo.errors import UserError


class DataMissing(UserError):
    """The data are neither on disk nor to be had; the only error that a fallback may answer."""


class DataModule(LightningDataModule):
    """Data that a run names and a checkpoint remembers.

    Args:
        fallback: names the data to train on if these are not available; None for an error.
    """

    name: str
    has_test = True  # whether a fit may end with a test

    def __init__(self, fallback: str | None = None) -> None:
        super().__init__()
        self.fallback = fallback
        self.stand_in: Any = None  # what is really used, if the data are not available

    @abstractmethod
    def fetch(self) -> None:
        """Puts the data on disk if they are not; safe in several processes at once.

        Raises:
            DataMissing: they are neither on disk nor to be had.
            UserError: they are there, but truncated or altered.
        """

    @abstractmethod
    def checksums(self) -> dict[str, str]:
        """Returns the sha256 of the data's files, by name."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Returns what using a network trained on these data takes, as JSON values."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Counts the samples of each split."""

    def network_arguments(self) -> dict[str, int]:
        """Returns a network's constructor arguments that follow from these data, by name."""
        return {}

    def report(self) -> str:
        """Describes the data, in a line or more."""
        self.prepare_data()
        sizes = ", ".join(f"{split} {size:,}" for split, size in self.sizes().items())
        return f"{self.used.name}: {sizes}"

    def make_stand_in(self) -> Any:
        """Makes the data module that ``fallback`` names.

        Raises:
            UserError: it names nothing.
        """
        raise UserError(f"data.fallback is {self.fallback!r}: {self.name} has none")

    @property
    def used(self) -> Any:
        """The data really used: these, or the stand-in."""
        return self.stand_in or self

    def describe(self) -> dict[str, Any]:
        """Describes the data for a checkpoint, as JSON values: name, facts and checksums."""
        self.prepare_data()
        used = self.used
        described = {"name": used.name, **used.facts(), "sha256": used.checksums()}
        return described if used is self else {**described, "instead_of": self.name}

    def prepare_data(self) -> None:
        """Fetches the data, or decides on the fallback; any process may call it, at any time.

        Raises:
            UserError: the data are altered, or not available and there is no fallback.
        """
        if self.stand_in is not None:
            return
        try:
            self.fetch()
        except DataMissing as missing:
            if self.fallback is None:
                raise UserError(f"{missing}") from None
            self.stand_in = self.make_stand_in()
            rank_zero_warn(
                f"\n{'!' * 88}\n!! {self.name} is missing and cannot be downloaded. TRAINING ON "
                f"{self.stand_in.name.upper()} INSTEAD.\n!! Every number of this run is about "
                f"{self.stand_in.name}, not {self.name}.\n!! {missing}\n{'!' * 88}"
            )
