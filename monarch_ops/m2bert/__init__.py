"""M2-BERT on the ops of this package, with Hugging Face conventions. Needs the extra ``monarch-ops[m2bert]``."""

try:
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM
except ImportError as error:
    raise ImportError(
        "monarch_ops.m2bert needs transformers: pip install 'monarch-ops[m2bert]' --no-build-isolation"
    ) from error

from .checkpoint import load_official
from .config import M2BertConfig
from .model import M2BertForMaskedLM, M2BertModel

AutoConfig.register(M2BertConfig.model_type, M2BertConfig, exist_ok=True)
AutoModel.register(M2BertConfig, M2BertModel, exist_ok=True)
AutoModelForMaskedLM.register(M2BertConfig, M2BertForMaskedLM, exist_ok=True)

__all__ = ["M2BertConfig", "M2BertForMaskedLM", "M2BertModel", "load_official"]
