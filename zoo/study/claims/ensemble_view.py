"""Dropout as an ensemble: weight scaling, the geometric mean, MC dropout and deep ensembles."""

from __future__ import annotations

from statistics import mean
from typing import Any

from torch import Tensor

from zoo.diagnostics.calibration import scores
from zoo.diagnostics.mc_dropout import ensemble, mc_dropout, single
from zoo.study.claims.base import Claim, Finding, Form, Numbers, alike, larger
from zoo.study.claims.members import MEMBERS, groups, held_out, train_members
from zoo.study.pictures import draw_points, new_mosaic

RATE = 0.5
CLOSE = 0.1  # of a subnetwork's own distance


def divergence(p: Tensor, q: Tensor) -> float:
    """The mean Kullback-Leibler divergence (nats) of rows (B, K) of q from those of p."""
    p, q = p.double().clamp_min(1e-12), q.double().clamp_min(1e-12)
    return float((p * (p.log() - q.log())).sum(1).mean())


def measure(form: Form) -> Numbers:
    samples = 50 if form.quick else 500
    held = held_out()
    members = train_members(form, RATE, MEMBERS * form.seeds)
    distance: dict[str, list[float]] = {
        "one subnetwork": [],
        "arithmetic mean": [],
        "weight scaling": [],
    }
    ways: dict[str, dict[str, list[float]]] = {
        "one forward": {},
        "MC dropout": {},
        f"ensemble of {MEMBERS}": {},
    }
    for number, group in enumerate(groups(members, form.seeds)):
        scaled = single(group[0], held.images)
        sampled = mc_dropout(group[0], held.images, samples, seed=number, return_samples=True)
        assert sampled.samples is not None
        geometric = sampled.samples.double().clamp_min(1e-12).log().mean(0).softmax(1)
        distance["weight scaling"].append(divergence(geometric, scaled.mean))
        distance["arithmetic mean"].append(divergence(geometric, sampled.mean))
        distance["one subnetwork"].append(divergence(geometric, sampled.samples[0]))
        together = ensemble(group, held.images)
        for found, prediction in zip(ways.values(), (scaled, sampled, together), strict=True):
            probabilities = prediction.mean.double()
            for name, value in scores(probabilities, held.labels).items():
                if name in ("accuracy", "nll", "ece") and value is not None:
                    found.setdefault(name, []).append(float(value))
    return {"distance": distance, "ways": ways, "samples": samples}


def judge_all(numbers: Numbers) -> list[Finding]:
    distance, ways = numbers["distance"], numbers["ways"]
    one, mc, many = ways.values()
    near = [CLOSE * value for value in distance["one subnetwork"]]
    return [
        larger(
            "Weight scaling approximates the geometric mean of subnetworks (to a tenth of one's "
            "own distance).",
            "divergence from the geometric mean (nats), a tenth of a subnetwork's less its own",
            near,
            distance["weight scaling"],
        ),
        larger(
            "A deep ensemble predicts better than one network.",
            "NLL (nats), one forward's less the ensemble's",
            one["nll"],
            many["nll"],
        ),
        larger(
            "And better than MC dropout.",
            "NLL (nats), MC dropout's less the ensemble's",
            mc["nll"],
            many["nll"],
        ),
        alike(
            "MC dropout predicts as well as one forward (within 0.005).",
            "accuracy, MC dropout's less one forward's",
            mc["accuracy"],
            one["accuracy"],
            0.005,
        ),
        larger(
            "And with a better NLL.",
            "NLL (nats), one forward's less MC dropout's",
            one["nll"],
            mc["nll"],
        ),
    ]


def draw(numbers: Numbers) -> Any:
    figure, axes = new_mosaic(("aaa", "bcd"), 5.6, height_ratios=(1, 1.1))
    title = f"from the geometric mean of {numbers['samples']} subnetworks: lower is nearer"
    draw_points(axes["a"], numbers["distance"], "divergence (nats)", title)
    axes["a"].set_xscale("log")
    kinds = {
        "accuracy": ("accuracy", "higher is better"),
        "nll": ("NLL (nats)", "lower is better"),
        "ece": ("ECE", "lower is better"),
    }
    for letter, (kind, (unit, title)) in zip("bcd", kinds.items(), strict=True):
        values = {name: by[kind] for name, by in numbers["ways"].items()}
        draw_points(axes[letter], values, unit, title)
        axes[letter].tick_params(labelleft=letter == "b")
    return figure


def message(numbers: Numbers) -> str:
    distance = {name: mean(values) for name, values in numbers["distance"].items()}
    share = distance["weight scaling"] / distance["one subnetwork"]
    one, mc, many = (mean(by["nll"]) for by in numbers["ways"].values())
    return (
        f"Weight scaling is as near to the geometric mean as {share:.1%} of a subnetwork's "
        f"distance; NLL {one:.3f} nats, by MC dropout {mc:.3f}, of {MEMBERS} networks {many:.3f}"
    )


CLAIM = Claim(
    "ensemble-view",
    "Dropout trains an ensemble: scaling the weights approximates the geometric mean of its "
    "subnetworks. MC dropout averages them; deep ensembles are better.",
    measure,
    judge_all,
    draw,
    message,
)
