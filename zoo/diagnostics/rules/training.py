"""How a model is about to be trained: decay and modes."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from zoo.core.text import counted
from zoo.diagnostics.rules.base import Finding, Subject, name, rule
from zoo.diagnostics.trace.snapshot import keeps_running_statistics


@rule(
    "decay-on-norm-or-bias",
    "warning",
    "Weight decay pulls norm scales and biases to zero, which regularizes nothing.",
    source="Goyal et al. 2017, section 5.1; He et al., CVPR 2019 (bag of tricks), section 3.1",
    fix="a parameter group with weight_decay 0 for norms and biases",
    bad="""
        model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        inputs = (torch.randn(4, 8),)
        options = {"optimizer": torch.optim.AdamW(model.parameters(), weight_decay=0.1)}
    """,
    good="""
        model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        inputs = (torch.randn(4, 8),)
        matrices = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        options = {"optimizer": torch.optim.AdamW(groups, weight_decay=0.1)}
    """,
)
def decay_on_norm_or_bias(subject: Subject) -> Iterator[Finding]:
    scales = {
        key
        for node in subject.training.nodes
        for key in (*node.facts.get("parameters", ()), node.facts.get("weight"))
    }
    names = {id(parameter): path for path, parameter in subject.model.named_parameters()}
    for group in (group for one in subject.optimizers for group in one.param_groups):
        if not group.get("weight_decay"):
            continue
        decayed = [
            names[id(p)]
            for p in group["params"]
            if id(p) in names and (p.ndim < 2 or id(p) in scales)
        ]
        by_module: dict[str, list[str]] = {}
        for path in decayed:
            module, _, parameter = path.rpartition(".")
            by_module.setdefault(module, []).append(parameter)
        for module, parameters in by_module.items():
            yield Finding(
                module,
                f"{' and '.join(parameters)} of {name(module)} decay by {group['weight_decay']:g}",
            )


@rule(
    "left-in-eval-at-fit",
    "error",
    "A part of the model that is to be trained is in evaluation mode: its dropout is off and its "
    "BatchNorm does not learn.",
    source="Lightning 2.2 and later leave every module in the mode it had before the fit",
    fix="model.train() before the fit; to freeze a part on purpose, freeze its parameters too",
    bad="""
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 2)).eval()
        inputs, options = (torch.randn(4, 8),), {"at_fit": True}
    """,
    good="""
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 2)).train()
        inputs, options = (torch.randn(4, 8),), {"at_fit": True}
    """,
)
def left_in_eval_at_fit(subject: Subject) -> Iterator[Finding]:
    if not subject.at_fit:
        return
    reported: list[str] = []
    idle = _idle(subject)
    for module in subject.model.modules():
        path = subject.paths[id(module)]
        if module.training or any(not r or f"{path}.".startswith(f"{r}.") for r in reported):
            continue
        if faults := [p for p in idle if not path or f"{p}.".startswith(f"{path}.")]:
            reported.append(path)
            yield Finding(
                path,
                f"{name(path)} is in evaluation mode at the start of the fit, with "
                f"{counted(len(faults), 'dropout or BatchNorm layer')} that training needs",
            )


def _idle(subject: Subject) -> set[str]:
    """Dropout and BatchNorm that training would use, are in evaluation mode, and not frozen."""
    modules = {subject.paths[id(m)]: m for m in subject.model.modules()}
    found = set()
    for path, module in modules.items():
        if module.training:
            continue
        if keeps_running_statistics(module):
            if any(p.requires_grad for p in module.parameters(recurse=False)):
                found.add(path)
        elif isinstance(module, nn.modules.dropout._DropoutNd) and module.p:
            # Dropout has nothing to freeze: what it stands in decides.
            owner = path
            while owner and not any(True for _ in modules[owner].parameters()):
                owner = owner.rpartition(".")[0]
            if any(p.requires_grad for p in modules[owner].parameters()):
                found.add(path)
    return found


_BAG = """
        class Bag(nn.Module):
            def __init__(self):
                super().__init__()
                self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 2)

            def forward(self, tokens):
                return self.head(self.table(tokens).mean(1))

        model, inputs = Bag(), (torch.randint(10, (4, 5)),)"""


@rule(
    "decay-on-embedding",
    "info",
    "Weight decay also shrinks the embedding of tokens that are not in the batch, and small "
    "embeddings cause large gradients in the layers after them.",
    source="OLMo team 2025 (2 OLMo 2 Furious); Takase et al. 2023 (Spike no more)",
    fix="a parameter group with weight_decay 0 for embeddings, unless they are tied to the output "
    "layer",
    bad=_BAG
    + """
        options = {"optimizer": torch.optim.AdamW(model.parameters(), weight_decay=0.1)}
    """,
    good=_BAG
    + """
        groups = [
            {"params": model.head.parameters()},
            {"params": model.table.parameters(), "weight_decay": 0.0},
        ]
        options = {"optimizer": torch.optim.AdamW(groups, weight_decay=0.1)}
    """,
)
def decay_on_embedding(subject: Subject) -> Iterator[Finding]:
    nodes = subject.training.nodes
    tied = {node.facts["matrix"] for node in nodes if "matrix" in node.facts}
    tables = {node.facts["table"] for node in nodes if "table" in node.facts} - tied
    names = {id(parameter): path for path, parameter in subject.model.named_parameters()}
    for group in (group for one in subject.optimizers for group in one.param_groups):
        for parameter in group["params"] if group.get("weight_decay") else ():
            if id(parameter) in tables & set(names):
                module, _, _ = names[id(parameter)].rpartition(".")
                yield Finding(
                    module,
                    f"the embedding {names[id(parameter)]} decays by {group['weight_decay']:g}",
                )


SHOWN = 10  # channels that a message names
ENOUGH = 64  # samples, before a unit that none has moved counts as dead


@rule(
    "dead-units",
    "warning",
    "A rectified channel that is never above zero passes nothing on and gets no gradient.",
    source="Lu et al. 2020 (Dying ReLU and initialization); measured on the loader's data in "
    "evaluation mode",
    fix="a lower learning rate or a warm-up, biases that begin at zero, normalization before the "
    "activation, or leaky ReLU",
    bad="""
        layer = nn.Linear(8, 8)
        nn.init.constant_(layer.bias, -100.0)
        model, inputs = nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 2)), ()
        options = {"loader": [torch.randn(64, 8)]}
    """,
    good="""
        layer = nn.Linear(8, 8)
        nn.init.zeros_(layer.bias)
        model, inputs = nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 2)), ()
        options = {"loader": [torch.randn(64, 8)]}
    """,
)
def dead_units(subject: Subject) -> Iterator[Finding]:
    for seen in subject.activity:
        channels = (~seen.active).nonzero().flatten().tolist()
        dead = len(channels)
        which = ", ".join(map(str, channels[:SHOWN])) + (", …" if dead > SHOWN else "")
        if dead and seen.samples >= ENOUGH:
            verb = "is" if dead == 1 else "are"
            yield Finding(
                seen.node.module,
                f"{dead:,} of {counted(seen.active.numel(), 'channel')} of {seen.node.op} in "
                f"{name(seen.node.module)} {verb} never active over {seen.samples} "
                f"samples: {which}",
                source=seen.node.source,
            )
