"""The drop rate from 0 to 0.8: too little does nothing, too much underfits and learns slowly."""

from __future__ import annotations

from statistics import mean
from typing import Any

from zoo.data.digits import Digits
from zoo.networks.convnet import ConvNet
from zoo.study.claims.base import Claim, Finding, Form, Numbers, alike, larger, signed
from zoo.study.fitting import build, fit
from zoo.study.pictures import TEXT, WIDTH, draw_over, finish, line, new_figure

RATES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.65, 0.8)
MINIMAL = 0.02  # nats of validation loss
OVER = "loss at {} less that at 0.5 (nats)"
LEARNED = 0.9  # training accuracy that counts as learned


def measure(form: Form) -> Numbers:
    epochs = 20 if form.quick else 60
    rates: dict[str, dict[str, list[float]]] = {}
    for rate in RATES:
        found = rates[str(rate)] = {"training": [], "validation": [], "accuracy": [], "epochs": []}
        for seed in range(form.seeds):
            # On every map and before every linear layer, so that the rate has something to do.
            network = build(
                seed,
                ConvNet,
                batch_norm=False,
                drop_rate=rate,
                spatial_drop_rate=rate,
                spatial="every",
            )
            fitted = fit(network, Digits(shift=0), epochs=epochs, seed=seed)
            found["training"].append(fitted.final("train_eval/loss"))
            found["validation"].append(fitted.final("val/loss"))
            found["accuracy"].append(fitted.final("val/accuracy"))
            learned = [value >= LEARNED for value in fitted.curves["train_eval/accuracy"]]
            found["epochs"].append(float(learned.index(True) + 1 if any(learned) else epochs + 1))
    return {"rates": rates, "epochs": epochs}


def judge_all(numbers: Numbers) -> list[Finding]:
    rates = numbers["rates"]
    slower = f"epochs to a training accuracy of {LEARNED}, at 0.5 less at 0"
    below = "validation loss at 0.05 less that at 0 (nats)"
    low, none = rates["0.05"], rates["0.0"]
    half = rates["0.5"]
    return [
        alike(
            f"Below 0.1 the effect is minimal (less than {MINIMAL} nats).",
            below,
            low["validation"],
            none["validation"],
            MINIMAL,
        ),
        *(
            larger(
                f"At {rate} {says}.",
                f"{kind} {OVER.format(rate)}",
                rates[rate][kind],
                half[kind],
            )
            for rate in ("0.65", "0.8")
            for kind, says in (("training", "it underfits"), ("validation", "it validates worse"))
        ),
        larger("Learning is slower.", slower, half["epochs"], none["epochs"]),
    ]


def draw(numbers: Numbers) -> Any:
    figure, axes = new_figure(1, 2, WIDTH, 4.2)
    loss, speed = axes.flat
    rates, epochs = [float(rate) for rate in numbers["rates"]], numbers["epochs"]
    for index, kind in enumerate(("validation", "training")):
        values = [by[kind] for by in numbers["rates"].values()]
        draw_over(loss, rates, values, label=kind, **line(index, 2))
    loss.set_ylim(bottom=0)
    finish(loss, "drop rate", "loss (nats)", f"after {epochs} epochs: lower is better")
    loss.legend()
    values = [by["epochs"] for by in numbers["rates"].values()]
    draw_over(speed, rates, values, **line(0, 2))
    speed.axhline(epochs + 1, color="grey", linestyle=":")
    place: dict[str, Any] = {"xytext": (0, -16), "textcoords": "offset points"}
    speed.annotate(f"not within {epochs} epochs", (rates[0], epochs + 1), fontsize=TEXT, **place)
    speed.set_ylim(bottom=0)
    speed.yaxis.get_major_locator().set_params(integer=True)
    title = "speed: lower is faster"
    finish(speed, "drop rate", f"epochs to a training accuracy of {LEARNED}", title)
    return figure


def message(numbers: Numbers) -> str:
    rates = {float(rate): by for rate, by in numbers["rates"].items()}
    none, low, half, most = (mean(rates[rate]["validation"]) for rate in (0.0, 0.05, 0.5, 0.8))
    slow = [mean(rates[rate]["epochs"]) for rate in (0.0, 0.5)]
    return (
        f"Dropout of 0.05 changes the held-out loss by {signed(low - none, 3)} nats, 0.8 raises "
        f"that of 0.5 from {half:.2f} to {most:.2f}; at 0.5 learning takes "
        f"{slow[1] / slow[0]:.1f} times the epochs"
    )


CLAIM = Claim(
    "drop-rate",
    "A drop rate below 0.1 has minimal effect; above 0.5 the network underfits; dropout makes "
    "learning slower.",
    measure,
    judge_all,
    draw,
    message,
)
