"""MC dropout is approximate: its rate and passes against deep ensembles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.diagnostics.calibration import auroc, ece, nll
from zoo.diagnostics.mc_dropout import Uncertainty, ensemble, mc_dropout, single
from zoo.evaluation.classifier import find_ood_images
from zoo.study.claims.base import Claim, Finding, Form, Numbers, larger
from zoo.study.claims.members import MEMBERS, Held, few_digits, groups, held_out, train_members
from zoo.study.pictures import draw_points, new_figure

RATES = (0.1, 0.5)
PASSES = (1, 10, 50)


def scored(known: Uncertainty, held: Held, unknown: Uncertainty | None) -> dict[str, float]:
    """NLL, ECE, and how well the entropy tells errors, and out-of-distribution images."""
    probabilities = known.mean.double()
    wrong = probabilities.argmax(1) != held.labels
    found = {"nll": nll(probabilities, held.labels), "ece": ece(probabilities, held.labels)}
    if (errors := auroc(known.entropy, wrong)) is not None:
        found["errors"] = errors
    if unknown is not None:
        entropy = torch.cat([known.entropy, unknown.entropy])
        other = torch.arange(len(entropy)) >= len(known.entropy)
        if (told := auroc(entropy, other)) is not None:
            found["ood"] = told
    return found


def measure(form: Form) -> Numbers:
    held = held_out()
    strange = find_ood_images("auto", few_digits(), 1000)
    images: Tensor | None = strange[1] if strange else None
    ways: dict[str, dict[str, list[float]]] = {}

    def add(name: str, known: Uncertainty, unknown: Uncertainty | None) -> None:
        for kind, value in scored(known, held, unknown).items():
            ways.setdefault(name, {}).setdefault(kind, []).append(value)

    for rate in RATES:
        members = train_members(
            form, rate, MEMBERS * form.seeds if rate == RATES[-1] else form.seeds
        )
        firsts = members[:: MEMBERS if rate == RATES[-1] else 1]
        for seed, network in enumerate(firsts):
            for passes in PASSES if rate == RATES[-1] else PASSES[-1:]:
                add(
                    f"MC {rate}, {passes} passes",
                    mc_dropout(network, held.images, passes, seed=seed),
                    None if images is None else mc_dropout(network, images, passes, seed=seed),
                )
            if rate == RATES[-1]:
                unknown = None if images is None else single(network, images)
                add("one forward", single(network, held.images), unknown)
        if rate == RATES[-1]:
            for group in groups(members, form.seeds):
                unknown = None if images is None else ensemble(group, images)
                add(f"ensemble of {MEMBERS}", ensemble(group, held.images), unknown)
    return {"ways": ways, "ood": strange[0] if strange else None}


def judge_all(numbers: Numbers) -> list[Finding]:
    ways = numbers["ways"]
    mc = ways[f"MC {RATES[-1]}, {PASSES[-1]} passes"]
    few = ways[f"MC {RATES[-1]}, {PASSES[0]} passes"]
    many = ways[f"ensemble of {MEMBERS}"]
    findings = [
        larger(
            "Ensembles are better than MC dropout.",
            "NLL (nats), MC dropout's less the ensemble's",
            mc["nll"],
            many["nll"],
        ),
        larger(
            "And better calibrated.",
            "ECE, MC dropout's less the ensemble's",
            mc["ece"],
            many["ece"],
        ),
        larger(
            "More passes approximate better.",
            f"NLL (nats), {PASSES[0]} pass less {PASSES[-1]}",
            few["nll"],
            mc["nll"],
        ),
    ]
    if "ood" in many and "ood" in mc:
        findings.append(
            larger(
                f"Ensembles tell images of {numbers['ood']} better.",
                "AUROC of the entropy, the ensemble's less MC dropout's",
                many["ood"],
                mc["ood"],
            )
        )
    return findings


def draw(numbers: Numbers) -> Any:
    kinds = {
        "nll": "NLL (nats)",
        "ece": "ECE",
        "errors": "AUROC of errors",
        "ood": f"AUROC of {numbers['ood']}",
    }
    logged = [k for k in kinds if all(k in by for by in numbers["ways"].values())]
    figure, axes = new_figure(2, 2, 14, 9)
    for axis, kind in zip(axes.flat, logged, strict=False):
        values = {name: by[kind] for name, by in numbers["ways"].items()}
        draw_points(axis, values, kinds[kind], "")
    for axis in axes.flat[len(logged) :]:
        axis.set_axis_off()
    return figure


CLAIM = Claim(
    "uncertainty",
    "MC dropout only approximates the posterior: deep ensembles are better calibrated.",
    measure,
    judge_all,
    draw,
)
