"""Adversarial training: a generator against a discriminator, counted in generator steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from zoo.core import pictures
from zoo.core.modes import evaluating
from zoo.core.seeds import step_seed
from zoo.data.augment import move
from zoo.errors import UserError
from zoo.tasks.base import Task, ramp
from zoo.tasks.graphs import StepGraph, make_portable
from zoo.tasks.optim import make_optimizer
from zoo.tasks.schedule import Schedule, make_schedule

COLLAPSED = 0.2  # spread of the samples, as a part of the real images', below which it is said
SATURATED = 0.02  # discriminator loss, below which it has won
SLOPE = 1e-3  # what a discriminator's loss has at least, if one backward must serve both networks


class Part(NamedTuple):
    """What one update learns from."""

    real: Tensor  # (B, C, H, W) in [-1, 1]
    labels: Tensor  # (B,)
    latents: Tensor  # (B, Z), of the images to be made
    others: Tensor  # (B,), a class that each image is not of; its own where none is asked for
    real_offsets: Tensor  # (2, B), pixels down and right that real images are moved by when shown
    made_offsets: Tensor  # (2, B)


class GAN(Task):
    """Trains a generator by the hinge loss of Lim & Ye 2017, or relativistic pairing.

    A training batch is shared out among ``discriminator_steps`` updates of the discriminator, and
    one of the generator follows: ``global_step``, ``max_steps``, schedules and checkpoint intervals
    count generator steps. Only the generator is averaged, with BatchNorm statistics of its own.

    Logs ``train/loss_discriminator``, ``train/loss_generator``, ``val/real`` and ``val/made``
    (the discriminator's mean verdicts: apart on training images and together on validation images
    it knows its training images by heart), ``val/spread`` (standard deviation of a pixel over the
    samples of a class, relative to real images': 1 is as varied, 0 is collapsed) and ``lr``.

    Args:
        network: with ``generator``, ``discriminator``, ``latent_size`` and ``num_classes``.
        optimizer: of both: ``adam``, ``adamw``, ``muon``, or another of timm's.
        lr: the generator's peak learning rate.
        discriminator_lr: the discriminator's; the generator's where none is given.
        discriminator_steps: updates of the discriminator to one of the generator.
        loss: ``hinge``, or ``relativistic``: a softplus of the difference between a real image's
            verdict and a made one's (Jolicoeur-Martineau 2019; Huang et al. 2024, R3GAN).
        one_stage: both networks learn from one forward and one backward of the discriminator, on
            the same made images (Fang et al., "Training Generative Adversarial Networks in One
            Stage", CVPR 2021, section 3): a quarter less to compute than in turns. The generator
            follows the discriminator as it was before its own step.
        mismatch: weight of real images beside a class that is not theirs, which the discriminator
            is to refuse as it does made ones (Reed et al., "Generative Adversarial Text to Image
            Synthesis", ICML 2016, section 4.2): else no pair teaches it that a class is wrong.
            No image goes through the network again for it; 0 for none.
        shift: pixels by which every image, real or made, is moved at most each way before the
            discriminator sees it, black coming in (Zhao et al., "Differentiable Augmentation for
            Data-Efficient GAN Training", NeurIPS 2020, section 3): it learns fewer of the training
            images by heart, and as made images are moved too, moved ones are not what is asked for.
        r1: weight of the squared gradient of the verdict at real images (Mescheder et al. 2018,
            section 4.1); 0 for none.
        momentum: of ``sgd`` and ``muon``; of the others' ``betas`` the first is 0 unless
            ``optimizer_args`` has them.
        optimizer_args: further arguments of both optimizers.
        schedule: after the warm-up, ``linear``, ``cosine`` or ``trapezoid`` down to zero, or
            ``constant``.
        warmup: part of the run, between 0 and 1, or a number of steps from 1 up.
        ema_decay: of the averaged generator, which is what makes samples; null for none.
        gradient_clip: the largest norm of each network's gradient; null for no limit. The
            trainer's own clipping does not work with two optimizers.
        channels_last: memory format of the filters; faster for convolutions.
        temperature: of ``sample`` and ``interpolate`` where they are given none: the standard
            deviation of the latents they draw, one number or one for each class. Below the 1 of
            training, samples are more typical and less varied (Brock et al., ICLR 2019, section
            3.1, cut the tails for the same). ``zoo.evaluation.temperatures`` chooses a list.
        cuda_graph: on a single CUDA device, record a step and replay it (``graphs.StepGraph``): a
            small network's is mostly launching. Nothing else changes, except that a loss that is
            no number has reached the weights when the run stops. Elsewhere it does nothing.
    """

    network: Any  # has generator, discriminator, latent_size and num_classes
    alternates = True  # each step leaves some parameters without a gradient
    monitor = ""  # nothing here tells which epoch is best
    headline = "agreement"

    def __init__(
        self,
        network: nn.Module,
        optimizer: str = "adam",
        lr: float = 2e-4,
        discriminator_lr: float | None = None,
        discriminator_steps: int = 2,
        loss: Literal["hinge", "relativistic"] = "hinge",
        r1: float = 0.0,
        optimizer_args: dict[str, Any] | None = None,
        schedule: Schedule = "linear",
        warmup: float = 0.0,
        ema_decay: float | None = 0.999,
        gradient_clip: float | None = None,
        channels_last: bool = False,
        temperature: float | list[float] = 1.0,
        one_stage: bool = False,
        momentum: float = 0.9,
        mismatch: float = 0.0,
        cuda_graph: bool = False,
        shift: int = 0,
    ) -> None:
        super().__init__(
            network,
            optimizer=optimizer,
            lr=lr,
            momentum=momentum,
            optimizer_args=optimizer_args,
            schedule=schedule,
            warmup=warmup,
            ema_decay=ema_decay,
            channels_last=channels_last,
        )
        if discriminator_steps < 1:
            raise UserError(f"model.discriminator_steps is {discriminator_steps}: at least 1")
        if loss not in ("hinge", "relativistic"):
            raise UserError(f"model.loss is {loss!r}: choose hinge or relativistic")
        if r1 < 0 or (gradient_clip is not None and gradient_clip <= 0):
            raise UserError("model.r1 cannot be negative, and model.gradient_clip is above 0")
        if mismatch < 0 or (mismatch and self.network.num_classes < 2):
            raise UserError(
                f"model.mismatch is {mismatch}: it cannot be negative, and needs two classes"
            )
        if shift < 0:
            raise UserError(f"model.shift is {shift}: it cannot be negative")
        _check_temperature("model.temperature", temperature, self.network.num_classes)
        if one_stage:
            _check_uncoupled(network)
        self.automatic_optimization = False
        self.discriminator_lr = lr if discriminator_lr is None else discriminator_lr
        self.discriminator_steps, self.loss, self.r1 = discriminator_steps, loss, r1
        self.gradient_clip, self._temperature = gradient_clip, temperature
        self.one_stage, self.mismatch, self.cuda_graph = one_stage, mismatch, cuda_graph
        self.shift = shift
        self.loss_discriminator, self.loss_generator = MeanMetric(), MeanMetric()
        self.verdict_real, self.verdict_made = MeanMetric(), MeanMetric()
        self._noise: torch.Generator | None = None
        self._graph: StepGraph | None = None
        self._spread: dict[str, list[Tensor]] = {"real": [], "made": []}

    # -- images ----------------------------------------------------------------------------------

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, Z) and labels (B,) → images (B, C, H, W) in (-1, 1)."""
        images: Tensor = self.network.generator(latents, labels)
        return images

    def example_inputs(self, data: Any) -> tuple[Tensor, ...]:
        batch = data.used.batch_size // self.discriminator_steps
        latents = self.draw(batch, torch.Generator().manual_seed(0))
        classes = self.network.num_classes
        return (latents, torch.arange(batch) % classes) if classes else (latents,)

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents (count, Z), normal; in training of this step and process."""
        size = self.network.latent_size
        # On the CPU, so that a seed means the same on every device.
        return torch.randn(count, size, generator=generator or self._noise).to(self.device)

    def statistics_forward(self, batch: Any) -> None:
        # BatchNorm of the averaged generator learns its statistics from what it is given to make.
        labels = self._labels(batch[1])
        self(self.draw(len(batch[1])), labels)

    def averaged(self) -> nn.Module:
        generator: nn.Module = self.network.generator
        return generator

    def _labels(self, labels: Tensor) -> Tensor | None:
        return labels if self.network.num_classes else None

    def _real(self, images: Tensor) -> Tensor:
        """Normalized images → the same in [-1, 1]."""
        mean = torch.tensor(self.data_info["mean"], device=images.device)[:, None, None]
        std = torch.tensor(self.data_info["std"], device=images.device)[:, None, None]
        return (images * std + mean) * 2 - 1

    # -- training --------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise UserError(
                "trainer.precision 16-mixed scales one optimizer's loss, and a GAN has two: use "
                "bf16-mixed or 32-true"
            )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        if len(images) < self.discriminator_steps:
            raise UserError(
                f"data.batch_size {len(images)} is shared out among model.discriminator_steps "
                f"{self.discriminator_steps}: it must be at least as large"
            )
        # The discriminator's is stepped past Lightning, which would count its steps too.
        counted: Any = self.optimizers()
        uncounted: Any = self.optimizers(use_pl_optimizer=False)
        # All that is random is drawn before anything is computed.
        self._noise = torch.Generator().manual_seed(step_seed(self.trainer, stream=1))
        shares = list(
            zip(
                self._real(images).tensor_split(self.discriminator_steps),
                labels.tensor_split(self.discriminator_steps),
                strict=True,
            )
        )
        parts = [
            self._part(*share) for share in (shares if self.one_stage else [*shares, shares[-1]])
        ]
        if self._graph is None:
            losses: Sequence[Tensor] = self._learn(parts, counted[0], uncounted[1])
        else:
            losses = self._replayed(parts, counted[0])
        self.loss_discriminator.update(losses[0])
        self.loss_generator.update(losses[1])
        schedulers: Any = self.lr_schedulers()
        for scheduler in schedulers:
            scheduler.step()
        for name in ("loss_discriminator", "loss_generator"):
            self.log(f"train/{name}", getattr(self, name), on_step=False, on_epoch=True)

    def _part(self, real: Tensor, labels: Tensor) -> Part:
        count = len(labels)
        latents = self.draw(count)
        others = self._other_classes(labels) if self.mismatch else labels
        offsets = torch.zeros(2, 2, count, dtype=torch.int64)
        if self.shift:
            offsets.random_(-self.shift, self.shift + 1, generator=self._noise)
        return Part(real, labels, latents, others, *offsets.to(self.device))

    def _moved(self, images: Tensor, offsets: Tensor) -> Tensor:
        return move(images, offsets, fill=-1.0) if self.shift else images

    def _learn(
        self, parts: Sequence[Part], generators: Any, discriminators: Any
    ) -> tuple[Tensor, Tensor]:
        """A step: the losses (S,) of the discriminator's updates, and the generator's."""
        *before, last = parts
        losses = [self._discriminator_step(part, discriminators) for part in before]
        if self.one_stage:
            loss, by_generator = self._both_steps(last, generators, discriminators)
            losses.append(loss)
        else:
            by_generator = self._generator_step(last, generators)
        return torch.stack(losses), by_generator

    def _replayed(self, parts: Sequence[Part], counted: Any) -> Sequence[Tensor]:
        assert self._graph is not None
        losses = self._graph(*(tensor for part in parts for tensor in part))
        counted.step()  # without a gradient left it moves nothing, and Lightning counts a step
        super().check_finite(losses[0].sum() + losses[1], applied=True)
        return losses

    def on_train_start(self) -> None:
        super().on_train_start()
        self._graph = None
        if not self._records():
            return
        optimizers: Any = self.optimizers(use_pl_optimizer=False)

        def step(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            size = len(Part._fields)
            parts = [Part(*tensors[at : at + size]) for at in range(0, len(tensors), size)]
            return self._learn(parts, *optimizers)

        self._graph = StepGraph(step, optimizers, self.device)

    def _records(self) -> bool:
        return self.cuda_graph and self.device.type == "cuda" and self.trainer.world_size == 1

    def on_train_end(self) -> None:
        super().on_train_end()
        self._graph = None  # it holds memory, and no copy can be made of it

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        make_portable(checkpoint.get("optimizer_states", []))

    def check_finite(self, loss: Tensor, applied: bool = False) -> Tensor:
        if self._graph is not None:  # what is recorded cannot ask; it is asked after the step
            return loss
        return super().check_finite(loss, applied)

    def _discriminator_step(self, part: Part, optimizer: Any) -> Tensor:
        with torch.no_grad():
            made = self._made(part)
        loss, _ = self._discriminator_loss(part, made)
        self._step(self.check_finite(loss), self.network.discriminator, optimizer)
        return loss.detach()

    def _generator_step(self, part: Part, optimizer: Any) -> Tensor:
        self.network.discriminator.requires_grad_(False)
        try:
            made = self._moved(self._made(part), part.made_offsets)
            if self.loss == "hinge":  # has no use for the verdicts on real images
                fake = self.network.discriminator(made, self._labels(part.labels)).float()
                loss = self._generators(fake, fake)
            else:
                real = self._moved(part.real, part.real_offsets)
                loss = self._generators(*self._verdicts(real, made, part.labels))
            self._step(self.check_finite(loss), self.network.generator, optimizer)
        finally:
            self.network.discriminator.requires_grad_(True)
        return loss.detach()

    def _both_steps(
        self, part: Part, generators: Any, discriminators: Any
    ) -> tuple[Tensor, Tensor]:
        """One forward and one backward of the discriminator for both networks.

        No image's verdict depends on another image. So what either loss says of a made image's
        pixels is one gradient, that of its verdict, times a number, that loss's slope in the
        verdict; the discriminator's backward has the one, and its number is exchanged.

        Returns:
            The discriminator's loss and the generator's.
        """
        made = self._made(part)
        shown = made.detach().requires_grad_()
        loss, verdicts = self._discriminator_loss(part, shown)
        first, second = (verdict.detach().requires_grad_() for verdict in verdicts)
        by_generator = self.check_finite(self._generators(first, second))
        slopes = [
            torch.autograd.grad(each, second)[0]
            for each in (by_generator, self._discriminators(first, second))
        ]
        self._step(self.check_finite(loss), self.network.discriminator, discriminators)
        assert shown.grad is not None
        pull = shown.grad * (slopes[0] / slopes[1]).view(-1, *[1] * (made.ndim - 1))
        self._step((made * pull).sum(), self.network.generator, generators)
        return loss.detach(), by_generator.detach()

    def _made(self, part: Part) -> Tensor:
        images: Tensor = self(part.latents, self._labels(part.labels))
        return images

    def _verdicts(
        self, real: Tensor, made: Tensor, labels: Tensor, others: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One forward of both: spectral norm steps once, and under DDP there is one forward.

        Verdicts (B,) on the real images and on the made, or (B, 2) with those as of ``others``.
        """
        asked = labels if others is None else torch.stack([labels, others], dim=1)
        both = self._labels(torch.cat([asked, asked]))
        verdicts: Tensor = self.network.discriminator(torch.cat([real, made]), both)
        first, second = verdicts.float().chunk(2)
        return first, second

    def _discriminator_loss(self, part: Part, made: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """With the verdicts on real and made images that it is of."""
        images = self._moved(part.real, part.real_offsets).detach().requires_grad_(bool(self.r1))
        made = self._moved(made, part.made_offsets)
        others = part.others if self.mismatch else None
        real, fake = self._verdicts(images, made, part.labels, others)
        if others is None:
            loss = self._discriminators(real, fake)
        else:
            (real, wrong), fake = real.unbind(1), fake[:, 0]
            loss = self._discriminators(real, fake) + self.mismatch * self._refusal(real, wrong)
        if self.r1:
            (slope,) = torch.autograd.grad(real.sum(), images, create_graph=True)
            loss = loss + 0.5 * self.r1 * slope.float().square().sum((1, 2, 3)).mean()
        return loss, (real, fake)

    def _other_classes(self, labels: Tensor) -> Tensor:
        """A class for each label (B,), any but its own."""
        classes = self.network.num_classes
        away = torch.randint(1, classes, labels.shape, generator=self._noise)
        return (labels + away.to(labels.device)) % classes

    def _discriminators(self, real: Tensor, fake: Tensor) -> Tensor:
        loss = self._refusal(real, fake)
        if self.loss == "hinge":
            loss = loss + F.relu(1 - real).mean()
        if self.one_stage:  # where the loss is flat there would be no gradient to pass on
            loss = loss + SLOPE * (fake - real).mean()
        return loss

    def _refusal(self, real: Tensor, wrong: Tensor) -> Tensor:
        if self.loss == "relativistic":
            return F.softplus(wrong - real).mean()
        return F.relu(1 + wrong).mean()

    def _generators(self, real: Tensor, fake: Tensor) -> Tensor:
        if self.loss == "relativistic":
            return F.softplus(real - fake).mean()
        return -fake.mean()

    def _step(self, loss: Tensor, network: nn.Module, optimizer: Any) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        if self.gradient_clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), self.gradient_clip)
        optimizer.step()

    def make_optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer(self.network.generator, self.lr)

    def _optimizer(self, network: nn.Module, lr: float) -> torch.optim.Optimizer:
        extra = {"betas": [0.0, 0.9], **(self.optimizer_args or {})}
        return make_optimizer(network, self.optimizer, lr, 0.0, self.momentum, extra)

    def configure_optimizers(self) -> Any:
        networks = (self.network.generator, self.network.discriminator)
        optimizers = [
            self._optimizer(network, lr)
            for network, lr in zip(networks, (self.lr, self.discriminator_lr), strict=True)
        ]
        steps = self._total_steps()
        return optimizers, [
            make_schedule(optimizer, self.schedule, self.warmup, steps) for optimizer in optimizers
        ]

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        loss = float(self.loss_discriminator.compute())
        if loss < SATURATED:
            rank_zero_warn(
                f"epoch {self.current_epoch + 1}: the discriminator has won (its loss is "
                f"{loss:.3g}) and teaches the generator nothing: lower model.discriminator_lr or "
                "model.discriminator_steps, or give model.r1"
            )

    # -- validation ------------------------------------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = self._real(batch[0]), batch[1]
        generator = torch.Generator().manual_seed(batch_idx)
        made = self(self.draw(len(images), generator), self._labels(labels))
        real, fake = self._verdicts(images, made, labels)
        for name, verdicts in (("real", real), ("made", fake)):
            metric = getattr(self, f"verdict_{name}")
            metric.update(verdicts)
            self.log(f"val/{name}", metric, on_epoch=True, batch_size=len(images))
        groups = labels if self.network.num_classes else torch.zeros_like(labels)
        for name, pixels in (("real", images), ("made", made)):
            spreads = [
                pixels[groups == group].float().var(0).mean()
                for group in torch.unique(groups)
                if int((groups == group).sum()) > 1
            ]
            self._spread[name].append(torch.stack(spreads).mean())

    def on_validation_epoch_end(self) -> None:
        made, real = (torch.stack(self._spread[name]).mean() for name in ("made", "real"))
        spread = float((made / real).sqrt())
        self._spread = {"real": [], "made": []}
        self.log("val/spread", spread, sync_dist=True)
        if spread < COLLAPSED and not self.trainer.sanity_checking:
            rank_zero_warn(
                f"epoch {self.current_epoch + 1}: the generator has collapsed: its samples of a "
                f"class vary {spread:.2f} times as much as real images: lower model.lr, or give "
                "model.r1 or more model.discriminator_steps"
            )

    # -- samples ---------------------------------------------------------------------------------

    @property
    def temperature(self) -> float | list[float]:
        """Of samples where none is given; may be set, and is saved with the weights."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float | list[float]) -> None:
        _check_temperature("temperature", value, self.network.num_classes)
        self._temperature = self.hparams["temperature"] = value

    def sample(
        self,
        labels: Sequence[int | str] | Tensor | int,
        seed: int | None = None,
        latents: Tensor | None = None,
        temperature: float | list[float] | None = None,
    ) -> Tensor:
        """Makes images.

        Args:
            labels: a class for each image, by number or by name; for a generator without classes,
                how many images.
            seed: the same seed makes the same images.
            latents: (B, Z), in place of drawn ones.
            temperature: standard deviation of drawn latents, or one for each of the task's
                classes; the task's own where none is given.

        Returns:
            Images (B, C, H, W) in [0, 1].

        Raises:
            UserError: no such class, a negative temperature, or a list of another length.
        """
        if isinstance(labels, int):
            given, count = None, labels
            if self.network.num_classes:
                raise UserError(
                    f"give a class for each image: [{labels}] for one of class {labels}"
                )
        else:
            numbers = [self._class(label) for label in labels]
            given, count = torch.tensor(numbers, device=self.device), len(numbers)
        if latents is None:
            latents = self._latents(count, seed) * self._deviations(temperature, given)
        return self._make(latents, given)

    def _deviations(self, given: float | list[float] | None, labels: Tensor | None) -> Tensor:
        """Of the latents of each label: (B, 1), or (1, 1) where all have the same."""
        if given is None:
            given = self.temperature
        _check_temperature("temperature", given, self.network.num_classes)
        deviations = torch.tensor(given, dtype=torch.float32, device=self.device).view(-1, 1)
        return deviations if labels is None or len(deviations) == 1 else deviations[labels]

    def _latents(self, count: int, seed: int | None) -> Tensor:
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        return self.draw(count, generator)

    @torch.no_grad()
    def _make(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        with evaluating(self.network):
            return self(latents, labels).float().add(1).div(2).clamp(0, 1)

    def _class(self, label: int | str | Tensor) -> int:
        names = [str(name) for name in self.data_info.get("classes", [])]
        if isinstance(label, str):
            if label not in names:
                raise UserError(f"no class named {label!r}: choose one of {', '.join(names)}")
            return names.index(label)
        if not 0 <= int(label) < self.network.num_classes:
            raise UserError(f"no class {int(label)}: there are {self.network.num_classes}")
        return int(label)

    def interpolate(
        self,
        first: int | str,
        second: int | str,
        steps: int = 8,
        seed: int | None = None,
        temperature: float | list[float] | None = None,
    ) -> Tensor:
        """Images (steps, C, H, W) on the way between two samples, of one class or of two.

        Latents turn at an even pace, which keeps their length (Shoemake 1985's spherical
        interpolation); between two classes their own scales and shifts are mixed, and their
        temperatures. Classes, ``seed`` and ``temperature`` as in ``sample``.

        Raises:
            UserError: as of ``sample``.
        """
        start, end = self._latents(2, seed)
        cosine = torch.dot(start, end) / (start.norm() * end.norm())
        angle = torch.acos(cosine.clamp(-1, 1))
        share = torch.linspace(0, 1, steps, device=self.device)[:, None]
        latents = (torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end) / (
            torch.sin(angle)
        )
        ends = torch.tensor([self._class(first), self._class(second)], device=self.device)
        both = F.one_hot(ends, self.network.num_classes).float()
        deviations = self._deviations(temperature, ends)
        latents = latents * ((1 - share) * deviations[0] + share * deviations[-1])
        return self._make(latents, (1 - share) * both[0] + share * both[1])

    def keep_sample(self, folder: Path, epoch: int) -> None:
        """A grid of what an epoch's weights make, of the same latents always, and an animation."""
        classes = self.network.num_classes
        labels: Any = torch.arange(classes).repeat_interleave(10) if classes else 100
        pictures.save_grid(self.sample(labels, seed=0), 10, folder / f"samples/{epoch:04d}.png")
        frames = sorted((folder / "samples").glob("[0-9]*.png"))
        pictures.animate(frames, folder / "samples.gif")

    def golden(self) -> Tensor:
        latents = ramp([2, self.network.latent_size])
        return self(latents, self._labels(torch.tensor([0, 1])))


def _check_uncoupled(network: Any) -> None:
    for name, module in network.discriminator.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"model.one_stage: the discriminator's {name} ties the verdicts on a batch's "
                "images together, and one backward cannot serve both networks"
            )


def _check_temperature(name: str, value: float | list[float], classes: int) -> None:
    for number in value if isinstance(value, list) else [value]:
        if not number >= 0:
            raise UserError(f"{name} is {number}: it cannot be negative")
    if isinstance(value, list) and (not classes or len(value) != classes):
        raise UserError(
            f"{name} has {len(value)} numbers for {classes} classes: give one for all, or one each"
        )
