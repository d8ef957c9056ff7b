"""The registry of what ``python -m zoo study`` runs: a name each, imported when it is run."""

from __future__ import annotations

WILD = "in-the-wild"  # zoo.study.in_the_wild, which has options of its own
EXPERIMENTS = ("regularization", "beyond")  # of zoo.study.regularization

# Claims of the documents, cheapest first: name → zoo.study.claims.base.Claim.
CLAIMS: dict[str, str] = {
    "inverted-dropout": "zoo.study.claims.inverted_dropout:CLAIM",
    "initialization": "zoo.study.claims.initialization:CLAIM",
    "variance-shift": "zoo.study.claims.variance_shift:CLAIM",
    "rmsnorm": "zoo.study.claims.rmsnorm:CLAIM",
    "drop-rate": "zoo.study.claims.drop_rate:CLAIM",
    "batch-size": "zoo.study.claims.batch_size:CLAIM",
    "learning-rate": "zoo.study.claims.learning_rate:CLAIM",
    "ensemble-view": "zoo.study.claims.ensemble_view:CLAIM",
    "uncertainty": "zoo.study.claims.uncertainty:CLAIM",
    "wide-resnet": "zoo.study.claims.wide_resnet:CLAIM",
    "spatial-dropout": "zoo.study.claims.spatial_dropout:CLAIM",
    "gan-norm": "zoo.study.claims.gan_norm:CLAIM",
    "lm-regularization": "zoo.study.claims.lm_regularization:CLAIM",
}
