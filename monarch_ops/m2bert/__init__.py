"""M2-BERT on the ops of this package, with Hugging Face conventions. Needs the extra ``monarch-ops[m2bert]``."""

try:
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification
except ImportError as error:
    raise ImportError(
        "monarch_ops.m2bert needs transformers: pip install 'monarch-ops[m2bert]' --no-build-isolation"
    ) from error

from .checkpoint import load_official
from .config import M2BertConfig
from .heads import M2BertForMaskedLM, M2BertForSequenceClassification
from .model import M2BertModel
from .warm_start import warm_start

AutoConfig.register(M2BertConfig.model_type, M2BertConfig, exist_ok=True)
AutoModel.register(M2BertConfig, M2BertModel, exist_ok=True)
AutoModelForMaskedLM.register(M2BertConfig, M2BertForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(M2BertConfig, M2BertForSequenceClassification, exist_ok=True)

__all__ = [
    "M2BertConfig",
    "M2BertForMaskedLM",
    "M2BertForSequenceClassification",
    "M2BertModel",
    "load_official",
    "warm_start",
]
