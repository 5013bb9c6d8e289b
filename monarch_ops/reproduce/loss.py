"""Orthogonal projection with a row at a time, multiple negatives ranking with two (arXiv 2402.07440, table 8)."""

from __future__ import annotations

from typing import Any

from .finding import Finding
from .study import Study

OPL, MNRL = "orthogonal projection, batch 1", "multiple negatives ranking, batch 2"
PAPER = {OPL: 0.911, MNRL: 0.704}


def compare_losses(study: Study) -> Finding:
    """Fine-tuning of the same pretrained models, by the losses at the batch that a device has the memory for.

    Both see every query with its relevant document equally often, each time beside one other document: for the ranking
    that of the other row of the batch, for the projection a random one, another each time. Both make the same steps,
    for each of which gradients of the same number of queries are accumulated. A query and its document are two rows
    for the projection, so that its step embeds twice as many texts. `tune_at_once` rows, of one folder, are embedded
    together, for they are faster so: the losses stay those of one row and of two, and their gradients with them.
    """
    options, batch = study.options, study.options.tune_batch_size
    pairs = sum(len(found) for part in study.train for found in part.qrels.values())
    passes = -(-options.tune_steps * batch // pairs)
    own: dict[str, dict[str, Any]] = {
        OPL: {"loss": "opl", "negatives": passes, "batch_size": 2 * batch},
        MNRL: {"loss": "mnrl", "negatives": 0, "batch_size": batch, "in_batch": 2},
    }
    arms: dict[str, list[float]] = {name: [] for name in own}
    references: dict[str, list[float]] = {"pretrained only": []}
    seconds = 0.0
    for seed in study.seeds("loss"):
        start, pretraining = study.pretrained("pretrained-mixed", seed)
        seconds += pretraining["seconds"]
        for name, given in own.items():
            tuned, tuning = study.fine_tuned(f"loss-{given['loss']}", seed, start, **given)
            arms[name].append(study.ndcg(tuned))
            seconds += tuning["seconds"]
        references["pretrained only"].append(study.ndcg(study.untuned("untuned", seed, start)))
    return Finding(
        "Fine-tuning with what fits into memory",
        "nDCG@10",
        arms,
        PAPER,
        "table 8, 80M parameters, 32k tokens, LoCoV1",
        references,
        facts={"passes": passes, "training_seconds": seconds},
    )
