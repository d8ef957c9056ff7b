"""Language modeling: the next token by cross-entropy, for any network with logits out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from zoo.errors import UserError
from zoo.networks.generation import Sampling, generate
from zoo.tasks.base import Record, Task
from zoo.tasks.schedule import Schedule


class LanguageModel(Task):
    """Trains a network from tokens (B, T) to logits of each next token (B, T, V).

    Logs ``train/loss``, ``val/loss`` (mean negative log-likelihood of a token, in nats, each token
    of the held-out text predicted once), ``val/perplexity`` (its exponential),
    ``val/bits_per_character`` (the same in bits) and ``lr``; outside a fit also
    ``val/loss_windows``, the mean over nanoGPT's 200 × 64 random windows, and ``val/loss_seen``,
    that over the end of the training text, as much as is held out, with dropout off: as far as it
    is below ``val/loss``, the network memorizes its text.

    Args:
        network: any module with logits out.
        optimizer: ``adamw``, ``muon``, or another of timm's optimizers.
        lr: peak learning rate.
        weight_decay: weight decay of matrices; norms and biases are never decayed.
        momentum: momentum of ``sgd`` and ``muon``.
        optimizer_args: further arguments of the optimizer.
        schedule: after the warm-up, ``linear``, ``cosine`` or ``trapezoid`` down, or ``constant``.
        warmup: part of the run, between 0 and 1, or a number of steps from 1 up.
        final_lr: what the schedule ends at, as a share of the peak.
        ema_decay: decay of the averaged weights, which are validated and saved; null for none.
        compile: compiles the network by torch.compile.
        record: records the training step as a CUDA graph; ``auto`` where that is possible.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        optimizer_args: dict[str, Any] | None = None,
        schedule: Schedule = "cosine",
        warmup: float = 0.05,
        final_lr: float = 0.0,
        ema_decay: float | None = None,
        compile: bool = False,
        record: Record = "auto",
    ) -> None:
        super().__init__(
            network,
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            optimizer_args=optimizer_args,
            schedule=schedule,
            warmup=warmup,
            final_lr=final_lr,
            ema_decay=ema_decay,
            compile=compile,
            record=record,
        )
        # Means over tokens, not over batches, and over all processes.
        self.sweep, self.windows, self.seen = MeanMetric(), MeanMetric(), MeanMetric()

    def golden(self) -> Tensor:
        ramp = torch.arange(2 * 16)
        return self((ramp * ramp % 97 % len(self.data_info["vocabulary"])).view(2, 16))

    def training_values(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        tokens, targets = batch
        losses = self._all_losses(tokens, targets)  # zero where there is no target
        return {"loss": losses.sum() / (targets >= 0).sum()}

    def training_weight(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (batch[1] >= 0).sum()

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        losses = self._losses(*batch)
        name, metric = [
            ("loss", self.sweep),
            ("loss_windows", self.windows),
            ("loss_seen", self.seen),
        ][dataloader_idx]
        metric.update(losses)
        self.log(
            f"val/{name}",
            metric,
            on_epoch=True,
            prog_bar=True,
            batch_size=len(losses),
            add_dataloader_idx=False,
        )

    def on_validation_epoch_end(self) -> None:
        loss = float(self.sweep.compute())
        self.log("val/perplexity", math.exp(min(loss, 700.0)), sync_dist=True)
        self.log("val/bits_per_character", loss / math.log(2), sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Predicts probabilities (B, T, V) of each next token, from (tokens, targets) or tokens."""
        return torch.softmax(self(self.inputs_of(batch)).float(), dim=-1)

    def _losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood (N,) in nats, of the targets that count."""
        return self._all_losses(tokens, targets)[targets.flatten() >= 0]

    def _all_losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Of every place (N,), 0 beyond the end of a text: torch's mark of no target is -100."""
        logits = self(tokens).float().flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), reduction="none")

    def keep_sample(self, folder: Path, epoch: int) -> None:
        """Appends text of an epoch's weights, always from the same seed, to samples.txt."""
        vocabulary: str = self.data_info.get("vocabulary", "")
        if vocabulary:
            start = "\n" if "\n" in vocabulary else vocabulary[0]
            text = self.generate(start, 300, temperature=0.8, seed=0)
            file, head = folder / "samples.txt", f"{'-' * 20} epoch {epoch} {'-' * 20}\n"
            before = file.read_text(encoding="utf-8") if file.is_file() else ""
            before = before.partition(head)[0]  # a resumed run may make an epoch anew
            file.write_text(f"{before}{head}{text.strip()}\n\n", encoding="utf-8")

    # -- text ------------------------------------------------------------------------------------

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 200,
        **sampling: Unpack[Sampling],
    ) -> Iterator[str]:
        """Continues a prompt, a character at a time; arguments as ``generate`` has them."""
        vocabulary: str = self.data_info.get("vocabulary", "")
        if not prompt:
            raise UserError("the prompt is empty: give at least one character")
        unknown = sorted(set(prompt) - set(vocabulary))
        if unknown:
            raise UserError(
                f"the prompt holds {unknown[0]!r}, which the model does not know: its "
                f"{len(vocabulary)} characters are {vocabulary!r}"
            )
        tokens = torch.tensor([[vocabulary.index(character) for character in prompt]])
        try:
            generated = generate(self.network, tokens, max_new_tokens, **sampling)
        except ValueError as error:
            raise UserError(str(error)) from None
        return (vocabulary[int(token)] for token in generated)

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 200,
        **sampling: Unpack[Sampling],
    ) -> str:
        """Continues a prompt; returns the prompt and the generated text.

        Args:
            prompt: in the characters that the model was trained on.
            max_new_tokens: characters to add.
            temperature: divides the logits; 0 takes the likeliest character.
            top_k: only the k likeliest characters.
            top_p: only the fewest that have a probability of p together.
            seed: the same seed gives the same text.

        Raises:
            UserError: an unknown character, or a setting out of range.
        """
        return prompt + "".join(self.stream(prompt, max_new_tokens, **sampling))
