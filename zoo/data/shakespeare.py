"""tiny-shakespeare: 1,115,394 characters of plays, the usual first text of language models."""

from __future__ import annotations

import hashlib
import string
import urllib.request
from pathlib import Path
from typing import Literal

from filelock import FileLock

from zoo.core.files import written_whole
from zoo.data.download import check_file, data_folder
from zoo.data.module import DataMissing
from zoo.data.text import Text
from zoo.errors import UserError

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SOURCE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
VOCABULARY = "\n !$&',-.3:;?" + string.ascii_uppercase + string.ascii_lowercase


class Shakespeare(Text):
    """tiny-shakespeare (Karpathy 2015): the first 90 % to train on, the last 10 % to validate on.

    Looks in ``ZOO_DATA``, else in a per-user cache, for ``tinyshakespeare/input.txt``; downloads it
    where it is missing, and checks its sha256.

    Args:
        context_length: characters of a window.
        batch_size: windows a batch and process.
        epoch_steps: batches an epoch; by default as many as cover the text once.
        choosing: leaves the last 10 % alone and validates on as much before it, for choosing
            settings.
        fallback: ``python`` trains on the English text of Python's own manual, with a warning, if
            Shakespeare is missing and cannot be downloaded; ``null`` makes that an error.
        replacement: training windows start anywhere, each drawn independently, as nanoGPT draws
            them; else they are drawn pass by pass through the text (``zoo.data.text.Starts``).

    Raises:
        UserError: the file is altered; or it is not available, without fallback.
    """

    name = "Shakespeare"
    vocabulary = VOCABULARY

    def __init__(
        self,
        context_length: int = 256,
        batch_size: int = 32,
        epoch_steps: int | None = None,
        choosing: bool = False,
        fallback: Literal["python"] | None = None,
        replacement: bool = False,
    ) -> None:
        super().__init__(
            context_length, batch_size, epoch_steps, 0.1, choosing, fallback, replacement
        )
        self._checked = False

    @property
    def file(self) -> Path:
        return data_folder() / "tinyshakespeare" / "input.txt"

    def fetch(self) -> None:
        if not self.file.exists():
            _download(self.file)
        if not self._checked:
            check_file(self.file, SHA256, "sha256")
            self._checked = True

    def read(self) -> str:
        return self.file.read_text(encoding="ascii")

    def checksums(self) -> dict[str, str]:
        return {"tinyshakespeare/input.txt": SHA256}

    def make_stand_in(self) -> Text:
        if self.fallback != "python":
            raise UserError(f"data.fallback is {self.fallback!r}: choose python or null")
        return PythonTopics(
            self.context_length,
            self.batch_size,
            self.epoch_steps,
            self.choosing,
            self.replacement,
        )


class PythonTopics(Text):
    """The English text of Python's own manual, in Shakespeare's characters: always available.

    Characters that Shakespeare does not have are left out, so that his networks fit. It differs
    with the version of Python.

    Args:
        context_length, batch_size, epoch_steps, choosing, replacement: as ``Shakespeare`` has
            them.
    """

    name = "PythonTopics"
    vocabulary = VOCABULARY

    def __init__(
        self,
        context_length: int = 256,
        batch_size: int = 32,
        epoch_steps: int | None = None,
        choosing: bool = False,
        replacement: bool = False,
    ) -> None:
        super().__init__(
            context_length, batch_size, epoch_steps, 0.1, choosing, replacement=replacement
        )

    def fetch(self) -> None:
        """Does nothing: the text comes with Python."""

    def read(self) -> str:
        from pydoc_data.topics import topics

        known = set(self.vocabulary)
        return "".join(c for name in sorted(topics) for c in topics[name] + "\n\n" if c in known)

    def checksums(self) -> dict[str, str]:
        return {"pydoc_data.topics": hashlib.sha256(self.read().encode()).hexdigest()}


def _download(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if file.exists():  # another process was faster
                return
            with (
                written_whole(file) as partial,
                urllib.request.urlopen(SOURCE, timeout=30) as answer,
            ):
                partial.write_bytes(answer.read())
    except OSError as error:  # URLError and timeouts are
        raise DataMissing(
            f"Shakespeare is not in {file.parent} and could not be downloaded ({error}). Set "
            "ZOO_DATA to a folder that holds tinyshakespeare/input.txt, or train with an internet "
            "connection; --data.fallback python trains on Python's manual instead"
        ) from None
