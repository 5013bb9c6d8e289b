"""Models for longer inputs, made of models for shorter ones."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from ..nn import HyenaFilter
from .model import M2BertEmbeddings, M2BertPreTrainedModel

Model = TypeVar("Model", bound=M2BertPreTrainedModel)


@torch.no_grad()
def warm_start(model: Model, to: int, decay: str = "stretch", features: str = "tile") -> Model:
    """A copy of `model` for inputs of up to `to` tokens.

    Position embeddings are tiled: row n is the old row n modulo the old length. The filters get taps for the new lags
    (:meth:`monarch_ops.nn.HyenaFilter.extend`), in one of four ways:

    * ``decay="stretch"``: the window that damps the taps is spread over the new length, as in the published 32k models,
      so that far lags count; all outputs change, and the model is to be trained. ``decay="tokens"``: it keeps its scale
      in tokens. Then every old tap keeps its value, an input of at most the old length has the same outputs as before
      (with ``padding="official"``: when padded to the same length), and the new lags, which no training has seen, are
      damped beyond the old end.
    * ``features="tile"``: the MLPs of the filters see the old position features again at the new lags.
      ``features="continue"``: they see what the initial features are there, functions of the position beyond the old
      range.

    The defaults are what the published ``expand_8k_model_to_32k`` means to do. As written, it leaves the features of
    the first 8192 lags at zero, makes five times the position embeddings and cannot run.

    Args:
        model: an encoder or a model with a head; left as it is.
        to: the new ``max_position_embeddings``, larger than the old; it need not be a multiple.

    Raises:
        ValueError: `to` is not larger, or `decay` or `features` is unknown.
    """
    old = model.config.max_position_embeddings
    if to <= old:
        raise ValueError(f"warm_start: argument 'to' must be larger than {old}, the longest input so far, got {to}")
    longer = copy.deepcopy(model)
    for module in longer.modules():
        if isinstance(module, HyenaFilter):
            module.extend(to, decay, features)
        elif isinstance(module, M2BertEmbeddings) and module.position_embeddings is not None:
            table = module.position_embeddings.weight
            tiled = table[torch.arange(to) % old]
            module.position_embeddings = nn.Embedding.from_pretrained(tiled, freeze=not table.requires_grad)
        if isinstance(module, M2BertPreTrainedModel):
            module.config.max_position_embeddings = to
            module.config.filter_base_length = module.config.filter_base_length or old
    return longer
