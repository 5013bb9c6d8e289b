"""Three orderings of arXiv 2402.07440 at a small scale: what to pretrain on, how to start a longer model, which loss.

Each compares ways to train, with several seeds, and says whether they come out in the paper's order. Needs the extras
``monarch-ops[train,eval]``.
"""

try:
    from .finding import Finding, Pair
    from .loss import compare_losses
    from .mixture import compare_mixtures
    from .picture import draw
    from .study import Options, Study, machine
    from .warm_start import compare_starts
except ImportError as error:
    raise ImportError(
        f"monarch_ops.reproduce: {error}; it needs: pip install --no-build-isolation 'monarch-ops[train,eval]'"
    ) from error

# by the names of the commands
ORDERINGS = {"mixture": compare_mixtures, "warm-start": compare_starts, "loss": compare_losses}

__all__ = [
    "ORDERINGS",
    "Finding",
    "Options",
    "Pair",
    "Study",
    "compare_losses",
    "compare_mixtures",
    "compare_starts",
    "draw",
    "machine",
]
