"""M2-BERT with a head: masked language model, text classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutput
from transformers.utils import can_return_tuple

from .config import M2BertConfig
from .model import M2BertModel, M2BertPreTrainedModel

_NOT_USED = {r"pooler\."}  # when an encoder is loaded


class M2BertForMaskedLM(M2BertPreTrainedModel):
    """Masked language model; the decoder is the word embedding itself. It has no pooler, as the published one."""

    _keys_to_ignore_on_load_unexpected = _NOT_USED

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        if not getattr(config, "tie_word_embeddings", True):
            raise ValueError("M2BertForMaskedLM: option 'tie_word_embeddings' must be True, got False")
        self.bert = M2BertModel(config, add_pooling_layer=False)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = nn.GELU()
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            nn.init.zeros_(self.decoder_bias)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; the decoder's bias follows, with zeros for new words."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        kept = self.decoder_bias.detach()[: embeddings.num_embeddings]
        self.decoder_bias = nn.Parameter(F.pad(kept, (0, embeddings.num_embeddings - len(kept))))
        return embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> MaskedLMOutput:
        """Logits (B, L, V); with `labels` (B, L) also the mean cross entropy over positions whose label is not -100.

        The other arguments are those of :class:`M2BertModel`.
        """
        out = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds,
            output_hidden_states,
            output_attentions,
            return_dict=True,
        )
        h = self.LayerNorm(self.act(self.dense(out.last_hidden_state)))
        logits = F.linear(h, self.bert.embeddings.word_embeddings.weight, self.decoder_bias)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


class M2BertForSequenceClassification(M2BertPreTrainedModel):
    """Text classifier or regressor: one linear layer on the pooled vector."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 2
        self.bert = M2BertModel(config)
        own = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if own is None else own)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Logits (B, num_labels); with `labels` also their loss.

        ``config.problem_type`` chooses the loss: "single_label_classification" (`labels` (B,) int64, cross entropy),
        "multi_label_classification" (`labels` (B, num_labels) floating, binary cross entropy) or "regression" (mean
        square). None is decided by `labels`, once, as in transformers: regression for one label, else by their dtype.
        The other arguments are those of :class:`M2BertModel`.
        """
        out = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds,
            output_hidden_states,
            output_attentions,
            return_dict=True,
        )
        text = out.last_hidden_state[:, 0] if self.config.use_cls_token else out.pooler_output
        logits = self.classifier(self.dropout(text))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)
