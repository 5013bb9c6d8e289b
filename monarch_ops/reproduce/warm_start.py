"""A longer model that starts from a shorter one, and one that starts from nothing (arXiv 2402.07440, table 7)."""

from __future__ import annotations

from .finding import Finding
from .study import Study, measured, tokens_seen

WARM, COLD, SHORTER = "warm start", "cold start", "the shorter model"
PAPER = {WARM: 0.339, COLD: 0.048}


def compare_starts(study: Study) -> Finding:
    """Language models by the same steps on the same rows; the warm start has those of the shorter model behind it."""
    options = study.options
    curves: dict[str, list[list[tuple[int, float]]]] = {WARM: [], COLD: []}
    losses: dict[str, list[float]] = {WARM: [], COLD: []}
    shorter: list[float] = []
    tokens: dict[str, list[float]] = {WARM: [], COLD: [], SHORTER: []}
    seconds = 0.0
    for seed in study.seeds("warm-start"):
        start, short = study.pretrained("start-shorter", seed, length=options.short_length)
        shorter.append(measured(short, "accuracy")[-1][1])
        tokens[SHORTER].append(tokens_seen(short) / 1e6)
        _, warm = study.pretrained("start-warm", seed, start=start)
        _, cold = study.pretrained("pretrained-mixed", seed)
        for name, manifest in ((WARM, warm), (COLD, cold)):
            curves[name].append(measured(manifest, "accuracy"))
            losses[name].append(measured(manifest, "loss")[-1][1])
            tokens[name].append(tokens_seen(manifest) / 1e6)
        seconds += sum(manifest["seconds"] for manifest in (short, warm, cold))
    loss, accuracy = study.unigram()
    return Finding(
        f"Masked language model of {options.max_length:,} tokens after {options.steps:,} steps",
        "accuracy",
        {name: [curve[-1][1] for curve in found] for name, found in curves.items()},
        PAPER,
        "table 7, 80M parameters, 32k tokens, 6,000 steps, in training",
        {f"{SHORTER}, {options.short_length:,} tokens": shorter},
        {"MLM loss": losses, "million tokens seen": tokens},
        curves,
        ("always the most frequent token", accuracy),
        {"unigram_loss": loss, "training_seconds": seconds},
    )
