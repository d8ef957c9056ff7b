"""MC dropout is approximate: its rate and passes against deep ensembles."""

from __future__ import annotations

from statistics import mean
from typing import Any

import torch
from torch import Tensor

from zoo.diagnostics.calibration import auroc, ece, nll
from zoo.diagnostics.mc_dropout import Uncertainty, ensemble, mc_dropout, single
from zoo.evaluation.classifier import find_ood_images
from zoo.study.claims.base import Claim, Finding, Form, Numbers, larger
from zoo.study.claims.members import MEMBERS, Held, few_digits, groups, held_out, train_members
from zoo.study.pictures import WIDTH, draw_points, new_figure

RATES = (0.1, 0.3, 0.5)
PASSES = (1, 10, 50)
CHOOSING = 337  # held-out images by which a rate is chosen; the other 800 judge
MC, ENSEMBLE = f"MC dropout, {PASSES[-1]} passes", f"ensemble of {MEMBERS}"  # and the drop rate
Scores = dict[str, dict[str, list[float]]]


def scored(known: Uncertainty, held: Held, unknown: Uncertainty | None) -> dict[str, float]:
    """NLL, ECE, and how well the entropy tells errors, and out-of-distribution images.

    Of the images that judge; ``chosen/*`` are NLL, ECE and errors of those that choose.
    """
    found: dict[str, float] = {}
    for prefix, part in (("chosen/", slice(CHOOSING)), ("", slice(CHOOSING, None))):
        probabilities, labels = known.mean[part].double(), held.labels[part]
        found[f"{prefix}nll"] = nll(probabilities, labels)
        found[f"{prefix}ece"] = ece(probabilities, labels)
        wrong = probabilities.argmax(1) != labels
        if (errors := auroc(known.entropy[part], wrong)) is not None:
            found[f"{prefix}errors"] = errors
    if unknown is not None:
        judging = known.entropy[CHOOSING:]
        entropy = torch.cat([judging, unknown.entropy])
        other = torch.arange(len(entropy)) >= len(judging)
        if (told := auroc(entropy, other)) is not None:
            found["ood"] = told
    return found


def measure(form: Form) -> Numbers:
    held = held_out()
    strange = find_ood_images("auto", few_digits(), 1000)
    images: Tensor | None = strange[1] if strange else None
    ways: Scores = {}

    def add(name: str, predict: Any) -> None:
        known, unknown = predict(held.images), None if images is None else predict(images)
        for kind, value in scored(known, held, unknown).items():
            ways.setdefault(name, {}).setdefault(kind, []).append(value)

    for rate in RATES:
        members = train_members(form, rate, MEMBERS * form.seeds)
        for seed, group in enumerate(groups(members, form.seeds)):
            # Fewer passes of the highest rate, at which they differ most.
            for passes in PASSES if rate == RATES[-1] else PASSES[-1:]:
                add(
                    _mc(rate, passes),
                    lambda x, g=group, p=passes, s=seed: mc_dropout(g[0], x, p, seed=s),
                )
            add(f"one forward, drop rate {rate}", lambda x, g=group: single(g[0], x))
            add(f"{ENSEMBLE}, drop rate {rate}", lambda x, g=group: ensemble(g, x))
    return {"ways": ways, "ood": strange[0] if strange else None}


def _mc(rate: float, passes: int) -> str:
    return f"MC dropout, {passes} pass{'es' if passes > 1 else ''}, drop rate {rate}"


def best(ways: Scores, way: str, kind: str) -> str:
    """Of a way, the rate whose score is the best on images that do not judge.

    Of out-of-distribution images there are none to choose by; NLL chooses there.
    """
    score = "chosen/nll" if kind == "ood" else f"chosen/{kind}"
    sign = -1 if kind == "errors" else 1
    names = [f"{way}, drop rate {rate}" for rate in RATES]
    names = [name for name in names if score in ways[name]]
    return min(names, key=lambda name: sign * mean(ways[name][score]))


def judge_all(numbers: Numbers) -> list[Finding]:
    ways: Scores = numbers["ways"]

    def finding(says: str, what: str, kind: str, higher: bool, why: str = "") -> Finding:
        mc, many = best(ways, MC, kind), best(ways, ENSEMBLE, kind)
        rates = f"(drop rates {mc.rpartition(' ')[2]} and {many.rpartition(' ')[2]})"
        if higher:
            number = f"{what}, the ensemble's less MC dropout's {rates}"
            return larger(says, number, ways[many][kind], ways[mc][kind], why=why)
        number = f"{what}, MC dropout's less the ensemble's {rates}"
        return larger(says, number, ways[mc][kind], ways[many][kind], why=why)

    errors = {
        way: ", ".join(f"{mean(ways[f'{way}, drop rate {rate}']['ece']):.3f}" for rate in RATES)
        for way in (MC, ENSEMBLE)
    }
    less = {
        mean(ways[f"{ENSEMBLE}, drop rate {rate}"]["ece"])
        < mean(ways[f"{MC}, drop rate {rate}"]["ece"])
        for rate in RATES
    }
    which = {True: "is less at each", False: "is more at each"}
    depends = (
        f"At drop rates of {', '.join(map(str, RATES))} the ECE of MC dropout is {errors[MC]}, "
        f"that of the ensembles {errors[ENSEMBLE]}: it "
        f"{which[less.pop()] if len(less) == 1 else 'is less at some and more at others'}. "
        "The interval is that of the two rates which other images chose."
    )
    few, mc = ways[_mc(RATES[-1], PASSES[0])], ways[_mc(RATES[-1], PASSES[-1])]
    findings = [
        finding("Ensembles predict better than MC dropout.", "NLL (nats)", "nll", False),
        finding("They are better calibrated.", "ECE", "ece", False, depends),
        finding("They tell errors better.", "AUROC of errors by entropy", "errors", True),
        larger(
            "More passes approximate better.",
            f"NLL (nats), {PASSES[0]} pass less {PASSES[-1]}, at {RATES[-1]}",
            few["nll"],
            mc["nll"],
        ),
    ]
    if all("ood" in by for by in ways.values()):
        says = f"They tell images of {numbers['ood']} better."
        findings.append(finding(says, "AUROC by entropy", "ood", True))
    return findings


KINDS = {
    "nll": ("NLL (nats)", "lower is better"),
    "ece": ("ECE", "lower is better"),
    "errors": ("AUROC of errors", "higher is better"),
    "ood": ("AUROC of other images", "higher is better"),
}


def draw(numbers: Numbers) -> Any:
    ways: Scores = numbers["ways"]
    kinds = {kind: text for kind, text in KINDS.items() if all(kind in by for by in ways.values())}
    figure, axes = new_figure(1, len(kinds), WIDTH, 0.5 * len(ways) + 1.2, sharey=True)
    order = sorted(ways, key=lambda name: name.rpartition(", drop rate")[0])
    for axis, (kind, (unit, title)) in zip(axes.flat, kinds.items(), strict=True):
        values = {name.replace(", drop", "\ndrop"): ways[name][kind] for name in order}
        draw_points(axis, values, unit, title)
    return figure


def message(numbers: Numbers) -> str:
    ways: Scores = numbers["ways"]
    mc, many = best(ways, MC, "ece"), best(ways, ENSEMBLE, "ece")
    scores = {name: mean(ways[name]["ece"]) for name in (mc, many)}
    losses = [mean(ways[best(ways, way, "nll")]["nll"]) for way in (MC, ENSEMBLE)]
    return (
        f"Calibration error (ECE): {MEMBERS} networks {scores[many]:.1%}, MC dropout "
        f"{scores[mc]:.1%}; NLL {losses[1]:.3f} against {losses[0]:.3f} nats (drop rates chosen on "
        "other images)"
    )


CLAIM = Claim(
    "uncertainty",
    "MC dropout only approximates the posterior: deep ensembles are better calibrated.",
    measure,
    judge_all,
    draw,
    message,
)
