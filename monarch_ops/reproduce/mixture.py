"""Pretraining on short and long texts, on long ones only, on short ones only (arXiv 2402.07440, table 6)."""

from __future__ import annotations

from typing import Any

from .finding import Finding
from .study import MIXED, Study, measured, tokens_seen

ARMS = {"mixed": MIXED, "long only": 0.0, "short only": 1.0}  # share of short examples
PAPER = {"mixed": 0.554, "long only": 0.449, "short only": 0.372}
LOSS, TOKENS = "MLM loss", "million tokens seen"


def compare_mixtures(study: Study) -> Finding:
    """Language models of the same weights, by the same number of steps of the same number of rows, then fine-tuned.

    Beside them stand a model that is fine-tuned without pretraining, and one that is not trained at all.
    """
    options = study.options
    own: dict[str, Any] = {
        "loss": options.tune_loss,
        "negatives": 0 if options.tune_loss == "mnrl" else options.negatives,
    }
    arms: dict[str, list[float]] = {name: [] for name in ARMS}
    references: dict[str, list[float]] = {"fine-tuned only": [], "untrained": []}
    more: dict[str, dict[str, list[float]]] = {LOSS: {name: [] for name in ARMS}, TOKENS: {name: [] for name in ARMS}}
    seconds = 0.0
    for seed in study.seeds("mixture"):
        for name, short in ARMS.items():
            folder, manifest = study.pretrained(f"pretrained-{name.split()[0]}", seed, short=short)
            more[LOSS][name].append(measured(manifest, "loss")[-1][1])
            more[TOKENS][name].append(tokens_seen(manifest) / 1e6)
            tuned, tuning = study.fine_tuned(f"mixture-{name.split()[0]}", seed, folder, **own)
            arms[name].append(study.ndcg(tuned))
            seconds += manifest["seconds"] + tuning["seconds"]
        tuned, tuning = study.fine_tuned("mixture-none", seed, None, **own)
        references["fine-tuned only"].append(study.ndcg(tuned))
        references["untrained"].append(study.ndcg(study.untuned("untrained", seed, None)))
        seconds += tuning["seconds"]
    return Finding(
        "Pretraining on short and long texts",
        "nDCG@10",
        arms,
        PAPER,
        "table 6, 80M parameters, 2k tokens, LoCoV1",
        references,
        more,
        facts={"unigram_loss": study.unigram()[0], "training_seconds": seconds},
    )
