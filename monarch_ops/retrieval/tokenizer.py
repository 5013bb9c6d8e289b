"""A WordPiece tokenizer trained on the texts at hand."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
                  "mask_token": "[MASK]"}  # fmt: skip


def train_tokenizer(texts: Iterable[str], vocab_size: int = 8192, max_length: int = 8192) -> PreTrainedTokenizerFast:
    """Train an uncased WordPiece tokenizer that meets prose and code alike.

    Words are split at white space, punctuation, underscores and camel case, and punctuation is dropped: ``readLine(x)``
    and "read line x" give the same tokens, and source code becomes about half as long.

    Args:
        texts: what the vocabulary is counted on.
        vocab_size: at most; the five special tokens included ("[PAD]" is 0).
        max_length: longest sequence the tokenizer returns when it truncates.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS["unk_token"]))
    camel_case = normalizers.Replace(Regex("(?<=[a-z])(?=[A-Z])"), " ")
    tokenizer.normalizer = normalizers.Sequence([camel_case, normalizers.BertNormalizer()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\w]|_"), behavior="removed")
    special = list(SPECIAL_TOKENS.values())
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **SPECIAL_TOKENS)
