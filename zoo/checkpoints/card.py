"""A checkpoint's README.md, generated from its config.json alone, so that the two cannot differ."""

from __future__ import annotations

import json
import math
import statistics
from typing import Annotated, Any, ClassVar, TypedDict

from zoo import registry
from zoo.core.checkpoint_config import Calibration, Seed
from zoo.core.schema import Count, Positive, Sha256, Size, check
from zoo.core.text import counted, shown
from zoo.errors import UserError

# Columns of what `python -m zoo uncertainty` measures.
COLUMNS = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "brier": "Brier",
    "ece": "ECE",
    "auroc_errors": "AUROC errors",
    "auroc_ood": "AUROC OOD",
}


# Of calibration, before and after.
CALIBRATED_COLUMNS = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "brier": "Brier",
    "ece": "ECE",
    "ece_equal_mass": "ECE, equal mass",
    "classwise_ece": "classwise ECE",
    "aurc": "AURC",
}
CALIBRATED: dict[str, Any] = {
    "before": dict.fromkeys(CALIBRATED_COLUMNS, float),
    "after": dict.fromkeys(CALIBRATED_COLUMNS, float),
    "sets": {"coverage": float, "size": float},
}


# What every card needs of a config.json, in addition to what loading needs.
NEEDS: dict[str, Any] = {
    "name": str,
    "parameters": Count,
    "headline": str,
    "metrics": dict[str, float],
    "samples": dict[str, Count],
    "seeds": list[Seed],
    "run": {
        "command": str,
        "date": str,
        "seed": int | bool | None,
        "epochs": Count,
        "steps": Count,
        "wall_time_s": float,
        "hardware": str,
        "versions": dict[str, str],
    },
    "recipe": {"model": {"init_args": {"network": {"init_args": dict[str, Any]}}}},
    "proof": {"audit": dict[str, Count]},
}
IMAGES = {
    "name": str,
    "classes": Annotated[list[str], len, "a list of names"],
    "mean": list[float],
    "std": list[float],
    "input_shape": list[Size],
}


class Shift(TypedDict):
    """The BatchNorm whose variance dropout shifts most."""

    layers: Count
    module: str
    ratio: float
    running_ratio: float


class Scores(TypedDict):
    """Scores of one way to predict."""

    accuracy: float | None
    nll: float | None
    brier: float | None
    ece: float | None
    auroc_errors: float | None
    auroc_ood: float | None


Share = Annotated[float, lambda value: 0 <= value <= 1, "a share, from 0 to 1"]


def card(config: dict[str, Any]) -> str:
    """Writes the text of a checkpoint's card from its config.json."""
    return _card(config).text()


def headline(config: dict[str, Any]) -> str:
    """Formats what was measured for a cell of the README's table."""
    return _card(config).headline()


def _card(config: dict[str, Any]) -> Card:
    entry = registry.find(registry.TASKS, config["task"]["name"], "task")
    cls: type[Card] = registry.load(entry.card)
    where = f"the card of {shown(config.get('name'))}"
    for needs in (NEEDS, cls.needs):
        check(config, needs, where)
    return cls(config)


def form_of(metric: str) -> str:
    """Gives the format of a metric: shares in percent."""
    return ".2%" if metric.endswith("accuracy") or metric == "agreement" else ".4f"


def standard_error(accuracy: float, samples: int) -> float:
    """Computes the binomial standard error of an accuracy over ``samples`` samples."""
    return math.sqrt(accuracy * (1 - accuracy) / samples)


class Card:
    """Writes what the cards of all tasks share; a subclass adds measurements, inputs and outputs.

    ``needs`` says what forms it counts on, by the key of config.json.
    """

    needs: ClassVar[dict[str, Any]] = {}
    pipeline: ClassVar[str] = ""  # Hugging Face's name for what the network does

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.name = config, str(config["name"])
        self.run, self.data, self.metrics = config["run"], config["data"], config["metrics"]
        self.samples = config["samples"]

    # -- what a task says ------------------------------------------------------------------------

    def usage(self) -> list[str]:
        """Lists the lines of Python that follow ``import zoo``."""
        raise NotImplementedError

    def measured(self) -> list[str]:
        raise NotImplementedError

    def headline(self) -> str:
        raise NotImplementedError

    def input_and_output(self) -> str:
        raise NotImplementedError

    def limits(self) -> str:
        raise NotImplementedError

    def amount(self) -> str:
        """States the amount of training data."""
        raise NotImplementedError

    def results(self) -> dict[str, float]:
        """Gives the header's metrics by Hugging Face's names; nothing by default."""
        return {}

    # -- what all share --------------------------------------------------------------------------

    def header(self) -> str:
        """Writes the card's YAML, by which the hub lists and searches models."""
        from huggingface_hub import EvalResult, ModelCardData  # `zoo list` need not wait for it

        dataset = self.data["name"]
        entries = [each for each in registry.DATA.values() if each.data.endswith(f":{dataset}")]
        on_hub = next((each.hub for each in entries if each.hub), None)
        results = [
            EvalResult(
                task_type=self.pipeline,
                dataset_type=on_hub or dataset.lower(),
                dataset_name=dataset,
                metric_type=metric,
                metric_value=value,
            )
            for metric, value in self.results().items()
        ]
        facts = ModelCardData(
            license="apache-2.0" if self.shipped and not self._pretrained() else "other",
            library_name="lightning-zoo",
            pipeline_tag=self.pipeline or None,
            tags=["pytorch", "lightning", self.config["network"]["name"].lower()],
            datasets=[on_hub] if on_hub else None,
            model_name=self.name,
            eval_results=results or None,
        )
        return facts.to_yaml()

    def text(self) -> str:
        config, run, network = self.config, self.run, self.config["network"]
        arguments = ", ".join(f"{k}={v!r}" for k, v in network["args"].items())
        lines = [
            "---",
            *self.header().splitlines(),
            "---",
            "",
            f"# {self.name}",
            "",
            f"`{network['name']}({arguments})`: {config['parameters']:,} parameters, trained on "
            f"{self.data['name']}.",
            "",
            "```python",
            "import zoo",
            "",
            *self.usage(),
            "```",
            "",
            "## Measured",
            "",
            *self.measured(),
            "",
            f"`python -m zoo verify {self.name if self.shipped else 'FOLDER'} --metrics` measures "
            "these numbers again.",
            "",
            "## Proof",
            "",
            *self.proof(),
            "",
            "## Trained",
            "",
            "```",
            run["command"],
            "```",
            "",
            f"- {counted(run['epochs'], 'epoch')}, {counted(run['steps'], 'step')}, "
            f"{run['wall_time_s'] / 60:.1f} minutes, seed {run['seed']}, on {run['date']}",
            f"- {', '.join(run[fact] for fact in ('hardware', 'precision') if fact in run)}",
            f"- {', '.join(f'{name} {version}' for name, version in run['versions'].items())}",
            f"- {self.amount()}; the resolved recipe, task and network are in `config.json`",
            "",
            "![Training curves](curves.png)",
            "",
            "## Input and output",
            "",
            self.input_and_output(),
            "",
            "## Limits",
            "",
            self.limits(),
            "",
            "## Files",
            "",
            f"`model.safetensors` sha256 `{config['weights_sha256']}`. {self.origin()}",
            "",
        ]
        return "\n".join(lines)

    def proof(self) -> list[str]:
        counts = self.config["proof"]["audit"].items()
        found = ", ".join(counted(count, severity) for severity, count in counts)
        return [f"- `python -m zoo audit {self.option()}`: {found}."]

    @property
    def shipped(self) -> bool:
        """Whether the project ships the weights, which then have a name and a recipe everywhere."""
        return bool(self.config.get("shipped", True))

    def source(self) -> str:
        """What loads the weights."""
        return self.name if self.shipped else f"path/to/{self.name}"

    def option(self) -> str:
        """What names them to a command."""
        return f"--recipe {self.name}" if self.shipped else f"--weights {self.source()}"

    def origin(self) -> str:
        """States the license of the weights."""
        if network := self._pretrained():
            return (
                f"Training began from timm's weights of {network['name']}: their license applies."
            )
        if not self.shipped:
            start = self.config["recipe"].get("init_from")
            began = f"Training began from the weights of {start}. " if start else ""
            return f"{began}Whoever trained them chooses the license."
        return "Weights: Apache-2.0, as the project; they do not build on weights from elsewhere."

    def _pretrained(self) -> dict[str, Any]:
        """The arguments of a network that began from published weights; empty for others."""
        args: dict[str, Any] = self.config["recipe"]["model"]["init_args"]["network"]["init_args"]
        return args if args.get("pretrained") else {}

    def over_seeds(self, metric: str, form: str) -> list[str]:
        """The mean of a metric over runs with several seeds, as ``fit`` measured it at its end."""
        seeds = self.config["seeds"]
        if len(seeds) < 2:
            return []
        values = [seed["metrics"][metric] for seed in seeds if metric in seed["metrics"]]
        if len(values) < len(seeds):
            raise UserError(f"the card of {self.name!r}: a seed of it has no {metric}")
        listed = ", ".join(
            f"{v:{form}} (seed {s['seed']})" for v, s in zip(values, seeds, strict=True)
        )
        return [
            "",
            f"Mean of {len(values)} seeds, as `fit` measured them at its end: "
            f"**{statistics.mean(values):{form}}**, standard deviation "
            f"{statistics.stdev(values):{form}}: {listed}. The shipped weights are those of seed "
            f"{self.run['seed']}.",
        ]


class ClassifierCard(Card):
    """Of ``ImageClassifier``."""

    pipeline = "image-classification"
    needs: ClassVar[dict[str, Any]] = {
        "data": IMAGES,
        "samples": {"train": Count, "val": Count, "test": Size},
        "metrics": {
            "test/accuracy": Share,
            "test/loss": float,
            "val/accuracy": Share,
            "val/loss": float,
        },
        "proof": {
            "variance_shift": Shift | None,
            "out_of_distribution": str | None,
            "uncertainty": dict[str, Scores],
        },
    }

    def usage(self) -> list[str]:
        return [
            f'model = zoo.load("{self.source()}")  # in eval mode, sha256 verified',
            "logits = model(images)  # normalized by model.data_info's mean and std",
        ]

    def headline(self) -> str:
        accuracy = self.metrics["test/accuracy"]
        return f"{accuracy:.2%} ± {standard_error(accuracy, self.samples['test']):.2%}"

    def results(self) -> dict[str, float]:
        return {
            "accuracy": round(self.metrics["test/accuracy"], 4),
            "loss": round(self.metrics["test/loss"], 4),
        }

    def measured(self) -> list[str]:
        metrics, samples = self.metrics, self.samples
        return [
            "The final epoch's weights (their average, where the recipe has one), in float32, "
            "without test-time augmentation; nothing was chosen on test data.",
            "",
            "| images | accuracy | loss (nats) |",
            "|---|---|---|",
            f"| test ({samples['test']:,}) | {self.headline()} (standard error) "
            f"| {metrics['test/loss']:.4f} |",
            f"| validation ({samples['val']:,}) | {metrics['val/accuracy']:.2%} "
            f"| {metrics['val/loss']:.4f} |",
            *self.over_seeds("test/accuracy", ".2%"),
            *self.calibrated(),
        ]

    def calibration(self) -> dict[str, Any] | None:
        """What was fitted, and measured, after training; None of a checkpoint without."""
        kept: dict[str, Any] | None = self.config.get("calibration")
        if kept is not None:
            where = f"the card of {shown(self.name)}"
            check(kept, Calibration, where, "calibration")
            check(self.config["proof"], {"calibration": CALIBRATED}, where, "proof")
        return kept

    def calibrated(self) -> list[str]:
        """Test scores before and after calibration, where the checkpoint has one."""
        if (kept := self.calibration()) is None:
            return []
        proof = self.config["proof"]["calibration"]
        power = kept["confidence_p"]
        by = "the maximum probability" if power is None else f"MaxLogit-pNorm (p = {power})"
        rows = (("as trained", "before"), ("calibrated", "after"))
        return [
            "",
            f"Calibrated on {kept['images']:,} validation images: temperature "
            f"{kept['temperature']:.4f}; confidence by {by}; on the test images:",
            "",
            f"| probabilities | {' | '.join(CALIBRATED_COLUMNS.values())} |",
            "|---" * (1 + len(CALIBRATED_COLUMNS)) + "|",
            *(
                f"| {name} | "
                + " | ".join(cell(key, proof[when][key]) for key in CALIBRATED_COLUMNS)
                + " |"
                for name, when in rows
            ),
            "",
            "Prediction sets (APS) with a target coverage of 95 % contain the true class of "
            f"{proof['sets']['coverage']:.2%} of the images; their mean size is "
            f"{proof['sets']['size']:.2f}.",
        ]

    def proof(self) -> list[str]:
        lines, proof = super().proof(), self.config["proof"]
        if shift := proof["variance_shift"]:
            lines.append(
                f"- `zoo.variance_shift` over {counted(shift['layers'], 'BatchNorm layer')}: the "
                f"ratio farthest from 1 is that of `{shift['module']}`, {shift['ratio']:.3f} with "
                f"dropout on to off; its running variance is {shift['running_ratio']:.3f} of the "
                "variance in evaluation, on images that are not augmented."
            )
            if abs(shift["running_ratio"] - 1) > 0.05:
                lines[-1] += (
                    " The running variance was gathered in training, on images as the recipe "
                    "augments them."
                )
        other = proof["out_of_distribution"]
        lines += [
            f"- `python -m zoo uncertainty {self.option()}`"
            + (f" (out-of-distribution images: {other}):" if other else ":"),
            "",
            f"| prediction | {' | '.join(COLUMNS.values())} |",
            "|---" * (1 + len(COLUMNS)) + "|",
        ]
        for way, scores in proof["uncertainty"].items():
            cells = [cell(key, scores[key]) for key in COLUMNS]
            lines.append(f"| {way} | {' | '.join(cells)} |")
        return lines

    def input_and_output(self) -> str:
        data = self.data
        shape = " × ".join(str(size) for size in data["input_shape"])
        part = data.get("crop_pct", 1)
        seen = (
            f", the middle of images of any size ({part:.1%} of the shorter side)"
            if part != 1
            else ""
        )
        return (
            f"Images ({shape}){seen}, scaled to [0, 1], then normalized by mean {data['mean']} and "
            f"standard deviation {data['std']}. Output: logits of {len(data['classes'])} classes, "
            f"in this order: {', '.join(data['classes'])}."
        )

    def limits(self) -> str:
        text = (
            f"It was trained on {self.data['name']} only: for any image it predicts one of its "
            f"{len(self.data['classes'])} classes. "
        )
        if kept := self.calibration():
            return (
                f"{text}Its logits are not calibrated: divide them by the temperature "
                f"{kept['temperature']:.4f} before softmax. On other images the probabilities "
                "have no meaning."
            )
        text += "Its probabilities are not calibrated"
        if self.config["task"]["args"].get("label_smoothing"):
            return (
                f"{text}: label smoothing alone makes them too low on such images, and on "
                "others they have no meaning."
            )
        return f"{text}; on other images they have no meaning."

    def amount(self) -> str:
        return f"training images: {self.samples['train']:,}"


class SegmenterCard(Card):
    """Of ``Segmenter``."""

    pipeline = "image-segmentation"
    needs: ClassVar[dict[str, Any]] = {
        "data": IMAGES,
        "samples": {"train": Count, "val": Count, "test": Size},
        "metrics": {
            **{f"{part}/{name}": Share for part in ("test", "val") for name in ("iou", "accuracy")},
            **{f"{part}/loss": float for part in ("test", "val")},
        },
    }

    def usage(self) -> list[str]:
        return [
            f'model = zoo.load("{self.source()}")  # in eval mode, sha256 verified',
            "masks = model(images).argmax(1)  # of normalized images, classes of pixels",
        ]

    def headline(self) -> str:
        return f"{self.metrics['test/iou']:.4f}"

    def results(self) -> dict[str, float]:
        return {name: round(self.metrics[f"test/{name}"], 4) for name in ("iou", "accuracy")}

    def measured(self) -> list[str]:
        metrics, samples = self.metrics, self.samples
        rows = [
            f"| {name} ({samples[part]:,}) | {metrics[f'{part}/iou']:.4f} "
            f"| {metrics[f'{part}/accuracy']:.2%} | {metrics[f'{part}/loss']:.4f} |"
            for name, part in (("test", "test"), ("validation", "val"))
        ]
        return [
            "The final epoch's weights (their average, where the recipe has one), in float32.",
            "",
            "| images | IoU, mean over classes | accuracy of pixels | loss (nats a pixel) |",
            "|---|---|---|---|",
            *rows,
            *self.over_seeds("test/iou", ".4f"),
        ]

    def input_and_output(self) -> str:
        data = self.data
        shape = " × ".join(str(size) for size in data["input_shape"])
        return (
            f"Images ({shape}), scaled to [0, 1], then normalized by mean {data['mean']} and "
            f"standard deviation {data['std']}. Output: logits of each pixel for "
            f"{len(data['classes'])} classes, in this order: {', '.join(data['classes'])}."
        )

    def limits(self) -> str:
        return (
            f"It was trained on {self.data['name']} only: each pixel of any image gets one of "
            f"its {len(self.data['classes'])} classes, and the probabilities are not calibrated."
        )

    def amount(self) -> str:
        return f"training images: {self.samples['train']:,}"


class LanguageCard(Card):
    """Of ``LanguageModel``."""

    pipeline = "text-generation"
    needs: ClassVar[dict[str, Any]] = {
        "data": {"name": str, "vocabulary": str},
        "samples": {"train": Count, "val": Count},
        "metrics": {
            f"val/{name}": float
            for name in ("loss", "bits_per_character", "perplexity", "loss_windows")
        },
        "text": {"prompt": str, "made": str},
    }

    def usage(self) -> list[str]:
        return [
            f'model = zoo.load("{self.source()}")  # in eval mode, sha256 verified',
            f"print(model.generate({json.dumps(self.config['text']['prompt'])}, "
            "max_new_tokens=200, seed=0))",
        ]

    def headline(self) -> str:
        return f"{self.metrics['val/loss']:.4f} nats"

    def results(self) -> dict[str, float]:
        return {
            "loss": round(self.metrics["val/loss"], 4),
            "perplexity": round(self.metrics["val/perplexity"], 3),
        }

    def measured(self) -> list[str]:
        metrics, samples, text = self.metrics, self.samples, self.config["text"]
        return [
            "The final epoch's weights, in float32, on the last "
            f"{samples['val']:,} characters of {self.data['name']}, window by window, each "
            "character predicted once.",
            "",
            "| loss (nats a character) | bits a character | perplexity | nanoGPT's 200 × 64 random "
            "windows |",
            "|---|---|---|---|",
            f"| {metrics['val/loss']:.4f} | {metrics['val/bits_per_character']:.4f} "
            f"| {metrics['val/perplexity']:.3f} | {metrics['val/loss_windows']:.4f} |",
            *self.over_seeds("val/loss", ".4f"),
            "",
            f"Continues {text['prompt']!r} (seed 0):",
            "",
            "```text",
            *text["made"].splitlines(),
            "```",
        ]

    def input_and_output(self) -> str:
        vocabulary = self.data["vocabulary"]
        length = self.config["network"]["args"].get("context_length")
        seen = f"up to {length} tokens" if length else "tokens"
        return (
            f"Input: {seen}, int64 (B, T); a token is the position of a character in these "
            f"{len(vocabulary)}: `{vocabulary!r}`. Output: logits of each next token (B, T, "
            f"{len(vocabulary)})."
        )

    def limits(self) -> str:
        return (
            f"It was trained on the characters of {self.data['name']} only: its text looks like "
            "the text it was trained on and has no meaning."
        )

    def amount(self) -> str:
        return f"training characters: {self.samples['train']:,}"


class GANCard(Card):
    """Of ``GAN``."""

    pipeline = "unconditional-image-generation"
    needs: ClassVar[dict[str, Any]] = {
        "data": IMAGES,
        "samples": {"train": Count, "test": Count},
        "judged": {
            "agreement": Share,
            "agreement_by_class": Annotated[dict[str, Share], len, "shares by class"],
            "frechet": float,
            "frechet_floor": Positive,
            "recall": Share,
            "samples": Count,
            "temperature": float | list[float],
            "real": Count,
            "classifier": {"name": str, "sha256": Sha256},
        },
    }

    def usage(self) -> list[str]:
        first = json.dumps(self.data["classes"][-1])  # in double quotes, as all of the README's
        return [
            f'model = zoo.load("{self.source()}")  # in eval mode, sha256 verified',
            f"images = model.sample([{first}] * 8, seed=0)  # (8, C, H, W) in [0, 1]",
        ]

    def headline(self) -> str:
        judged = self.config["judged"]
        return (
            f"{judged['agreement']:.2%}, Fréchet distance "
            f"{judged['frechet'] / judged['frechet_floor']:.1f} × that of real images"
        )

    def results(self) -> dict[str, float]:
        judged = self.config["judged"]
        return {
            "agreement": round(judged["agreement"], 4),
            "frechet_distance_over_floor": round(judged["frechet"] / judged["frechet_floor"], 2),
            "recall": round(judged["recall"], 4),
        }

    def measured(self) -> list[str]:
        judged = self.config["judged"]
        by_class = judged["agreement_by_class"]
        worst = min(by_class, key=by_class.__getitem__)
        return [
            f"{judged['samples']:,} images generated by the averaged generator (seed 0, "
            f"{_temperature(judged)}), the same number of each class, measured by the reference "
            f"classifier `{judged['classifier']['name']}` (sha256 "
            f"`{judged['classifier']['sha256'][:12]}…`), which was trained on real images only:",
            "",
            "| | |",
            "|---|---|",
            f"| classified as the class that was asked for | {judged['agreement']:.2%} |",
            f"| the worst class, {worst} | {by_class[worst]:.2%} |",
            f"| Fréchet distance of its penultimate features, {judged['samples']:,} generated "
            f"images against {judged['real']:,} training images | {judged['frechet']:.3f} |",
            f"| floor: the same distance of {self.samples['test']:,} real test images "
            f"| {judged['frechet_floor']:.3f} |",
            f"| recall: real test images that lie among the generated ones "
            f"| {judged['recall']:.2%} |",
            "",
            "The distance is not the usual one, on Inception's features. Compare it with its floor "
            "only.",
            "",
            "![Samples, a row a class](samples.png)",
        ]

    def input_and_output(self) -> str:
        data, size = self.data, self.config["network"]["args"]["latent_size"]
        shape = " × ".join(str(size) for size in data["input_shape"])
        return (
            f"Input: normal latents (B, {size}) and labels (B,). Output: images ({shape}) in "
            f"(-1, 1); `sample` gives them in [0, 1]. Classes: {', '.join(data['classes'])}."
        )

    def limits(self) -> str:
        return (
            f"It generates images like those of {self.data['name']} and no others. A generated "
            "image is not evidence of anything real."
        )

    def amount(self) -> str:
        return f"training images: {self.samples['train']:,}; steps are the generator's"


def _temperature(judged: dict[str, Any]) -> str:
    value = judged["temperature"]
    if isinstance(value, list):
        numbers = ", ".join(f"{number:g}" for number in value)
        said = f"temperatures of the classes, in their order, {numbers}"
    else:
        said = f"temperature {value:g}"
    return said + (
        ", chosen on training images by the same classifier" if judged.get("chosen") else ""
    )


def cell(column: str, value: float | None) -> str:
    """Formats a score for a table; one that does not apply is ``-``."""
    if value is None:
        return "-"
    return f"{value:.2%}" if column == "accuracy" else f"{value:.4f}"
