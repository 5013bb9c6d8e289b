"""Training of M2-BERT (arXiv 2402.07440): masked language modeling on short and long texts, fine-tuning for retrieval.

The trainers are those of transformers and sentence-transformers. Needs the extra ``monarch-ops[train]``.
"""

try:
    from .finetune import LOSSES, FineTuneOptions, fine_tune
    from .masked import PretrainOptions, pretrain
    from .mixture import Mixture, open_corpus, packed, passages, texts_of
    from .pairs import hard_negatives, random_negatives, spans, training_rows
    from .run import Run
    from .start import new_encoder, new_language_model
except ImportError as error:
    raise ImportError(
        f"monarch_ops.training needs {error.name}: pip install --no-build-isolation 'monarch-ops[train]'"
    ) from error

__all__ = [
    "LOSSES",
    "FineTuneOptions",
    "Mixture",
    "PretrainOptions",
    "Run",
    "fine_tune",
    "hard_negatives",
    "new_encoder",
    "new_language_model",
    "open_corpus",
    "packed",
    "passages",
    "pretrain",
    "random_negatives",
    "spans",
    "texts_of",
    "training_rows",
]
