"""Adversarial training: a generator against a discriminator, counted in generator steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from zoo.core.seeds import step_seed
from zoo.data.augment import move
from zoo.data.normalization import Normalization
from zoo.errors import UserError
from zoo.tasks.base import Record
from zoo.tasks.gan.losses import hinge_discriminator, hinge_generator, hinge_mismatch
from zoo.tasks.gan.sampling import LatentSampler, check_temperature
from zoo.tasks.optim import make_optimizer
from zoo.tasks.schedule import Schedule, make_schedule

COLLAPSED = 0.2  # spread of the samples relative to real images', below which a fit warns
SATURATED = 0.02  # discriminator loss, below which a fit warns that it has won
SLOPE = 1e-3  # the least slope of a discriminator's loss whose backward serves both networks


class Part(NamedTuple):
    """What one update learns from."""

    real: Tensor  # (B, C, H, W) in [-1, 1]
    labels: Tensor  # (B,)
    latents: Tensor  # (B, Z), of the images to be generated
    others: Tensor  # (B,), a class that each image is not of; its own without ``mismatch``
    real_offsets: Tensor  # (2, B), pixels down and right by which real images are moved
    generated_offsets: Tensor  # (2, B)


class GAN(LatentSampler):
    """Trains a generator against a discriminator by the hinge loss of Lim & Ye, 2017.

    On each training batch the discriminator takes a step, and the generator one: ``global_step``,
    ``max_steps``, schedules and checkpoint intervals count batches. Only the generator is averaged,
    with BatchNorm statistics of its own.

    Logs ``train/loss_discriminator``, ``train/loss_generator``, ``val/real`` and ``val/made`` (the
    discriminator's mean scores of real and of generated images: if real images score higher in
    training than in validation, it memorizes its training images), ``val/spread`` (standard
    deviation of a pixel over the samples of a class, relative to real images': 1 is as varied, 0 is
    collapsed) and ``lr``.

    Args:
        network: with ``generator``, ``discriminator``, ``latent_size`` and ``num_classes``, which
            is at least 1.
        optimizer: optimizer of both networks: ``adam``, ``muon``, or another of timm's.
        lr: peak learning rate, or two of them: the generator's and the discriminator's (Heusel et
            al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
            Equilibrium", NeurIPS 2017).
        optimizer_args: further arguments of both optimizers, ``momentum`` of ``muon`` among them;
            of ``betas`` the first is 0 unless it is given (Miyato et al., ICLR 2018, appendix).
        schedule: ``linear``, ``cosine`` or ``trapezoid`` down to zero, or ``constant``.
        ema_decay: decay of the averaged generator, which generates the samples (Yazıcı et al., "The
            Unusual Effectiveness of Averaging in GAN Training", ICLR 2019); null for none.
        channels_last: memory format of the filters; faster for convolutions.
        temperature: default temperature of ``sample`` and ``interpolate``, the standard deviation
            of their latents, one number or one for each class. Below the 1 of
            training, samples are more typical and less varied (Brock et al., ICLR 2019, section
            3.1, cut the tails for the same). ``zoo.evaluation.temperatures`` chooses a list.
        one_stage: both networks learn from one forward and one backward of the discriminator, on
            the same generated images (Fang et al., "Training Generative Adversarial Networks in One
            Stage", CVPR 2021, section 3), which is a quarter less to compute than in turns. The
            generator follows the discriminator as it was before its own step.
        mismatch: weight of real images with a class that is not theirs, which the discriminator
            learns to reject as it does generated ones (Reed et al., "Generative Adversarial Text to
            Image Synthesis", ICML 2016, section 4.2); otherwise no pair teaches it that a class is
            wrong. No image goes through the network again for it; 0 for none.
        shift: pixels by which every image, real or generated, is moved at most each way before the
            discriminator sees it, black coming in (Zhao et al., "Differentiable Augmentation for
            Data-Efficient GAN Training", NeurIPS 2020, section 3). It memorizes fewer of the
            training images, and since generated images are moved too, the generator does not learn
            to move them.
        record: records the training step as a CUDA graph; ``auto`` where that is possible.
    """

    network: Any  # with generator, discriminator, latent_size and num_classes
    alternates = True  # each step leaves some parameters without a gradient
    monitor = ""  # nothing here tells which epoch is best
    headline = "agreement"

    def __init__(
        self,
        network: nn.Module,
        optimizer: str = "adam",
        lr: float | list[float] = 2e-4,
        optimizer_args: dict[str, Any] | None = None,
        schedule: Schedule = "linear",
        ema_decay: float | None = 0.999,
        channels_last: bool = False,
        temperature: float | list[float] = 1.0,
        one_stage: bool = False,
        mismatch: float = 0.0,
        shift: int = 0,
        record: Record = "auto",
    ) -> None:
        rates = lr if isinstance(lr, list) else [lr, lr]
        if len(rates) != 2 or not all(rate > 0 for rate in rates):
            raise UserError(
                f"model.lr is {lr}: give one number above 0, or two, the generator's and the "
                "discriminator's"
            )
        arguments = {"betas": [0.0, 0.9], **(optimizer_args or {})}
        super().__init__(
            network,
            optimizer=optimizer,
            lr=rates[0],
            momentum=arguments.pop("momentum", 0.9),
            optimizer_args=arguments,
            schedule=schedule,
            warmup=0,
            ema_decay=ema_decay,
            channels_last=channels_last,
            record=record,
        )
        if self.network.num_classes < 1:
            raise UserError(
                f"a GAN's network has {self.network.num_classes} classes: it needs at least one, "
                "which all images may have"
            )
        if mismatch < 0 or (mismatch and self.network.num_classes < 2):
            raise UserError(
                f"model.mismatch is {mismatch}: it cannot be negative, and needs two classes"
            )
        if shift < 0:
            raise UserError(f"model.shift is {shift}: it cannot be negative")
        check_temperature("model.temperature", temperature, self.network.num_classes)
        if one_stage:
            _check_uncoupled(network)
        self.automatic_optimization = False
        self.discriminator_lr, self._temperature = rates[1], temperature
        self.one_stage, self.mismatch, self.shift = one_stage, mismatch, shift
        self._normalization: Normalization | None = None
        self.score_real, self.score_generated = MeanMetric(), MeanMetric()
        self._spread: dict[str, list[Tensor]] = {"real": [], "generated": []}

    # -- input and output ------------------------------------------------------------------------

    def example_inputs(self, data: Any) -> tuple[Tensor, ...]:
        batch = data.used.batch_size
        latents = self.draw(batch, torch.Generator().manual_seed(0))
        return latents, torch.arange(batch) % self.network.num_classes

    def statistics_forward(self, batch: Any) -> None:
        # Only the generator is averaged, and it has its input from latents.
        self(self.draw(len(batch[1])), batch[1])

    def averaged(self) -> nn.Module:
        generator: nn.Module = self.network.generator
        return generator

    def _denormalized(self, images: Tensor) -> Tensor:
        """Normalized images → the same in [-1, 1]."""
        known = self._normalization
        if known is None or known.mean != self.data_info["mean"]:
            known = Normalization(self.data_info["mean"], self.data_info["std"])
            self._normalization = known
        return known.undo(images) * 2 - 1

    # -- training --------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise UserError(
                "trainer.precision 16-mixed scales one optimizer's loss, and a GAN has two: use "
                "bf16-mixed or 32-true"
            )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # type: ignore[override]
        # The discriminator's is stepped past Lightning, which would count its steps too.
        counted: Any = self.optimizers()
        uncounted: Any = self.optimizers(use_pl_optimizer=False)
        # All that is random is drawn before anything is computed.
        self._noise = torch.Generator().manual_seed(step_seed(self.trainer, stream=1))
        real, labels = self._denormalized(batch[0]), batch[1]
        parts = [self._part(real, labels) for _ in range(1 if self.one_stage else 2)]
        step = self.global_step
        if self._recorded is None:
            losses = self._learn(parts, counted[0], uncounted[1])
        else:
            losses = self.run_recorded([tensor for part in parts for tensor in part])
            counted[0].step()  # without a gradient left it moves nothing, and Lightning counts it
        self.watch(step, losses["loss_discriminator"] + losses["loss_generator"])
        schedulers: Any = self.lr_schedulers()
        for scheduler in schedulers:
            scheduler.step()
        self.log_training(1, **losses)

    def whole_step(self, *tensors: Tensor, ends: bool) -> dict[str, Tensor]:
        """All of a step, of the tensors of its parts; every batch ends with the optimizers'."""
        size = len(Part._fields)
        parts = [Part(*tensors[at : at + size]) for at in range(0, len(tensors), size)]
        optimizers: Any = self.optimizers(use_pl_optimizer=False)
        losses = self._learn(parts, *optimizers)
        self.take_average()
        return losses

    def _part(self, real: Tensor, labels: Tensor) -> Part:
        count = len(labels)
        latents = self.draw(count)
        others = self._other_classes(labels) if self.mismatch else labels
        offsets = torch.zeros(2, 2, count, dtype=torch.int64)
        if self.shift:
            offsets.random_(-self.shift, self.shift + 1, generator=self._noise)
        return Part(real, labels, latents, others, *offsets.to(self.device, non_blocking=True))

    def _moved(self, images: Tensor, offsets: Tensor) -> Tensor:
        return move(images, offsets, fill=-1.0) if self.shift else images

    def _learn(
        self, parts: Sequence[Part], generators: Any, discriminators: Any
    ) -> dict[str, Tensor]:
        """A step of each network: their losses."""
        if self.one_stage:
            loss, loss_generator = self._both_steps(parts[0], generators, discriminators)
        else:
            loss = self._discriminator_step(parts[0], discriminators)
            loss_generator = self._generator_step(parts[1], generators)
        return {"loss_discriminator": loss, "loss_generator": loss_generator}

    def _discriminator_step(self, part: Part, optimizer: Any) -> Tensor:
        with torch.no_grad():
            generated = self._generated(part)
        loss, _ = self._discriminator_loss(part, generated)
        self._step(self.check_finite(loss), self.network.discriminator, optimizer)
        return loss.detach()

    def _generator_step(self, part: Part, optimizer: Any) -> Tensor:
        with without_gradient(self.network.discriminator):
            generated = self._moved(self._generated(part), part.generated_offsets)
            scores = self.network.discriminator(generated, part.labels).float()
            loss = hinge_generator(scores)
            self._step(self.check_finite(loss), self.network.generator, optimizer)
        return loss.detach()

    def _both_steps(
        self, part: Part, generators: Any, discriminators: Any
    ) -> tuple[Tensor, Tensor]:
        """One forward and one backward of the discriminator for both networks.

        No image's score depends on another image. So the gradient of either loss with respect to a
        generated image is that of its score, times a number, the slope of that loss in the score.
        The discriminator's backward has the first, and the number is exchanged.

        Returns:
            The discriminator's loss and the generator's.
        """
        generated = self._generated(part)
        seen = generated.detach().requires_grad_()
        loss, scores = self._discriminator_loss(part, seen)
        first, second = (each.detach().requires_grad_() for each in scores)
        loss_generator = self.check_finite(hinge_generator(second))
        slopes = [
            torch.autograd.grad(each, second)[0]
            for each in (loss_generator, self._score_loss(first, second))
        ]
        self._step(self.check_finite(loss), self.network.discriminator, discriminators)
        assert seen.grad is not None
        pull = seen.grad * (slopes[0] / slopes[1]).view(-1, *[1] * (generated.ndim - 1))
        self._step((generated * pull).sum(), self.network.generator, generators)
        return loss.detach(), loss_generator.detach()

    def _generated(self, part: Part) -> Tensor:
        images: Tensor = self(part.latents, part.labels)
        return images

    def _scores(
        self, real: Tensor, generated: Tensor, labels: Tensor, others: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One forward of both: spectral norm steps once, and under DDP there is one forward.

        Returns:
            Scores (B,) of the real and of the generated images; with ``others`` (B, 2), the second
            column under these classes.
        """
        asked = labels if others is None else torch.stack([labels, others], dim=1)
        both = torch.cat([real, generated]), torch.cat([asked, asked])
        scores: Tensor = self.network.discriminator(*both)
        first, second = scores.float().chunk(2)
        return first, second

    def _discriminator_loss(
        self, part: Part, generated: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The loss, and the scores of real and generated images that it is of."""
        images = self._moved(part.real, part.real_offsets)
        generated = self._moved(generated, part.generated_offsets)
        if not self.mismatch:
            real, fake = self._scores(images, generated, part.labels)
            return self._score_loss(real, fake), (real, fake)
        both, fakes = self._scores(images, generated, part.labels, part.others)
        (real, wrong), fake = both.unbind(1), fakes[:, 0]
        loss = self._score_loss(real, fake) + self.mismatch * hinge_mismatch(wrong)
        return loss, (real, fake)

    def _score_loss(self, real: Tensor, generated: Tensor) -> Tensor:
        """The discriminator's loss, as far as it is of the scores alone."""
        loss = hinge_discriminator(real, generated)
        if self.one_stage:  # where the loss is flat there would be no gradient to pass on
            loss = loss + SLOPE * (generated - real).mean()
        return loss

    def _other_classes(self, labels: Tensor) -> Tensor:
        """A class for each label (B,), any but its own."""
        classes = self.network.num_classes
        away = torch.randint(1, classes, labels.shape, generator=self._noise)
        return (labels + away.to(labels.device, non_blocking=True)) % classes

    def _step(self, loss: Tensor, network: nn.Module, optimizer: Any) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def make_optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer(self.network.generator, self.lr)

    def _optimizer(self, network: nn.Module, lr: float) -> torch.optim.Optimizer:
        return make_optimizer(network, self.optimizer, lr, 0.0, self.momentum, self.optimizer_args)

    def configure_optimizers(self) -> Any:
        networks = (self.network.generator, self.network.discriminator)
        optimizers = [
            self._optimizer(network, lr)
            for network, lr in zip(networks, (self.lr, self.discriminator_lr), strict=True)
        ]
        steps = self._total_steps()
        return optimizers, [
            make_schedule(optimizer, self.schedule, 0.0, steps) for optimizer in optimizers
        ]

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        loss = float(self.training_metrics["loss_discriminator"].compute())  # type: ignore[operator]
        if loss < SATURATED:
            rank_zero_warn(
                f"epoch {self.current_epoch + 1}: the discriminator has won (its loss is "
                f"{loss:.3g}) and the generator gets no useful gradient: lower the second "
                "number of "
                "model.lr, or give model.shift"
            )

    # -- validation ------------------------------------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = self._denormalized(batch[0]), batch[1]
        generator = torch.Generator().manual_seed(batch_idx)
        generated = self(self.draw(len(images), generator), labels)
        real, fake = self._scores(images, generated, labels)
        for name, metric, scores in (
            ("real", self.score_real, real),
            ("made", self.score_generated, fake),
        ):
            metric.update(scores)
            self.log(f"val/{name}", metric, on_epoch=True, batch_size=len(images))
        for name, pixels in (("real", images), ("generated", generated)):
            self._spread[name].append(variance_within(pixels, labels))

    def on_validation_epoch_end(self) -> None:
        real, generated = (torch.stack(values).mean() for values in self._spread.values())
        spread = float((generated / real).sqrt())
        for values in self._spread.values():
            values.clear()
        self.log("val/spread", spread, sync_dist=True)
        if spread < COLLAPSED and not self.trainer.sanity_checking:
            rank_zero_warn(
                f"epoch {self.current_epoch + 1}: the generator has collapsed: its samples of a "
                f"class vary {spread:.2f} times as much as real images: lower the first number of "
                "model.lr"
            )

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise UserError(
            "GAN cannot predict classes; use an ImageClassifier, or generate images with "
            "python -m zoo sample"
        )


@contextmanager
def without_gradient(network: nn.Module) -> Iterator[None]:
    """Lets a network's trainable parameters require no gradient for a while."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def variance_within(images: Tensor, groups: Tensor) -> Tensor:
    """Computes the mean variance of a pixel over the images of a group.

    Args:
        images: (B, C, H, W).
        groups: (B,); groups of one image do not count.
    """
    variances = [
        images[groups == group].float().var(0).mean()
        for group in torch.unique(groups)
        if int((groups == group).sum()) > 1
    ]
    return torch.stack(variances).mean()


def _check_uncoupled(network: Any) -> None:
    for name, module in network.discriminator.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"model.one_stage: the discriminator's {name} ties the scores of a batch's "
                "images together, and one backward cannot serve both networks"
            )
