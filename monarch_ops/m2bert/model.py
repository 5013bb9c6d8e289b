"""M2-BERT: a BERT whose layers mix the sequence by gated long convolutions and the features by block-diagonal MLPs.

    ids -> embeddings -> [ mixer -> MLP ] x N -> hidden states -> pooler

A layer is ``h <- MLP(mixer(h))``: no residual or norm around the mixer, whose skip path is its own residual long
convolution (arXiv 2310.12109 section 5, arXiv 2402.07440). Cost grows as L log L with the length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from ..nn import BlockDiagLinear, HyenaFilter
from ..ops import blockdiag_glu_mlp, blockdiag_matmul, m2_mixer
from .config import M2BertConfig
from .filters import M2BertFilter, SpectrumCache


class M2BertEmbeddings(nn.Module):
    """Word, token type and position embeddings, summed and normalised."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.position_embeddings = (
            nn.Embedding(config.max_position_embeddings, config.hidden_size)
            if config.use_positional_encodings
            else None
        )
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Word ids (B, L) or word vectors (B, L, H) -> (B, L, H)."""
        x = words if words.is_floating_point() else self.word_embeddings(words)
        if token_type_ids is None:
            token_type_ids = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
        x = x + self.token_type_embeddings(token_type_ids)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings.weight[: x.shape[1]]
        return self.dropout(self.LayerNorm(x))


class M2BertMixer(nn.Module):
    """Sequence mixer: short convolution, gate, long convolution, gate, plus a residual long convolution."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        H = config.hidden_size
        self.layernorm = nn.LayerNorm(H) if config.hyena_training_additions else None
        self.in_linear = nn.Linear(H, 3 * H)
        self.out_linear = nn.Linear(H, H)
        self.short_weight = nn.Parameter(torch.empty(3 * H, 3))
        self.short_bias = nn.Parameter(torch.empty(3 * H))
        self.reset_parameters()
        self.filter_fn = self._filter(config)
        self.filter_fn2 = self._filter(config) if config.residual_long_conv else None
        self._spectrum = SpectrumCache(self.filter_fn)
        self._spectrum2 = None if self.filter_fn2 is None else SpectrumCache(self.filter_fn2)

    def reset_parameters(self) -> None:
        """The short convolution as nn.Conv1d starts; the rest of the mixer is made of modules of its own."""
        nn.init.uniform_(self.short_weight, -(3**-0.5), 3**-0.5)
        nn.init.uniform_(self.short_bias, -(3**-0.5), 3**-0.5)

    def train(self, mode: bool = True) -> M2BertMixer:
        for cache in self.filter_caches():
            cache.clear()
        return super().train(mode)

    def filter_caches(self) -> list[SpectrumCache]:
        return [self._spectrum] if self._spectrum2 is None else [self._spectrum, self._spectrum2]

    @staticmethod
    def _filter(config: M2BertConfig) -> M2BertFilter:
        return M2BertFilter(
            config.hidden_size,
            config.max_position_embeddings,
            order=config.hyena_filter_order,
            emb_dim=config.hyena_emb_dim,
            w=config.hyena_w,
            w_mod=config.hyena_w_mod,
            bidirectional=config.bidirectional,
            base_len=config.filter_base_length,
        )

    def forward(self, u: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, L, H) -> (B, L, H), best a transposed (B, H, L): no product on the way changes the layout."""
        if self.layernorm is not None:
            u = self.layernorm(u)
        L, rows = u.shape[1], u.transpose(1, 2).contiguous()
        a = blockdiag_matmul(rows.transpose(1, 2), self.in_linear.weight[None], self.in_linear.bias).transpose(1, 2)
        residual = None if self._spectrum2 is None else self._spectrum2(L, a.dtype)
        y = m2_mixer(
            a,
            None if residual is None else rows.to(a.dtype),
            self.short_weight,
            self.short_bias,
            self._spectrum(L, a.dtype),
            residual,
            lengths,
        )
        out = blockdiag_matmul(y.transpose(1, 2), self.out_linear.weight[None], self.out_linear.bias)
        # the gradients of the MLP are made of separate ops, which are a quarter faster row by row; a forward pass that
        # checkpointing repeats for them has the same layout, in the order of which dropout draws
        return out.contiguous() if self.training or torch.is_grad_enabled() else out


class M2BertMlp(nn.Module):
    """Feature mixer: (gated) MLP with dense or block-diagonal weights, residual and LayerNorm."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        H, inner = config.hidden_size, config.intermediate_size
        wide = 2 * inner if config.use_glu_mlp else inner
        blocks = config.monarch_mlp_nblocks
        self.gated_layers: BlockDiagLinear | nn.Linear
        self.wo: BlockDiagLinear | nn.Linear
        if config.use_monarch_mlp:
            self.gated_layers = BlockDiagLinear(H, wide, nblocks=blocks, bias=False)
            self.wo = BlockDiagLinear(inner, H, nblocks=blocks)
        else:
            self.gated_layers, self.wo = nn.Linear(H, wide, bias=False), nn.Linear(inner, H)
        self.layernorm = nn.LayerNorm(H, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.glu = config.use_glu_mlp
        whole_blocks = H % blocks == 0 and wide % blocks == 0 and inner % blocks == 0
        self.fused = config.use_monarch_mlp and config.use_glu_mlp and whole_blocks

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, H)."""
        if self.fused and not (self.training and self.dropout.p > 0):
            return blockdiag_glu_mlp(
                x,
                self.gated_layers.weight,
                self.wo.weight,
                self.wo.bias,
                residual=x,
                norm_weight=self.layernorm.weight,
                norm_bias=self.layernorm.bias,
                eps=self.layernorm.eps,
            )
        h = self.gated_layers(x)
        if self.glu:
            gate, value = h.chunk(2, dim=-1)
            h = F.gelu(gate) * value
        else:
            h = F.gelu(h)
        return self.layernorm(self.wo(self.dropout(h)) + x)


class M2BertLayer(GradientCheckpointingLayer):
    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.attention = M2BertMixer(config)
        self.mlp = M2BertMlp(config)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        return self.mlp(self.attention(x, lengths))


class M2BertEncoder(nn.Module):
    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(M2BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, lengths: Tensor | None, states: list[Tensor] | None = None) -> Tensor:
        """(B, L, H) -> (B, L, H); what every layer returns is also appended to `states`."""
        for layer in self.layer:
            x = layer(x, lengths)
            if states is not None:
                states.append(x)
        return x


class M2BertPooler(nn.Module):
    """tanh(dense(position 0)), or of the mean over valid positions."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.mean = config.pooling == "mean"

    def forward(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """(B, L, H) -> (B, H)."""
        if not self.mean:
            return torch.tanh(self.dense(hidden[:, 0]))
        mask = hidden.new_ones(hidden.shape[:2]) if attention_mask is None else attention_mask.to(hidden.dtype)
        return torch.tanh(self.dense((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)))


# when a checkpoint is loaded: M2BertFilter says why
_FLOAT32_MODULES = {"filter_fn", "filter_fn2"}


class M2BertPreTrainedModel(PreTrainedModel):
    config: M2BertConfig
    config_class = M2BertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _keep_in_fp32_modules_strict = _FLOAT32_MODULES

    def _init_weights(self, module: nn.Module) -> None:
        """Initial values of a module's own parameters; transformers also asks for what a checkpoint lacks."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, HyenaFilter):
            module.reset_parameters(self.config.hyena_w)
        elif isinstance(module, nn.LayerNorm | BlockDiagLinear | M2BertMixer):
            module.reset_parameters()


def checked_words(input_ids: Tensor | None, inputs_embeds: Tensor | None, config: M2BertConfig) -> Tensor:
    """The one of both that is given, when the model can take it."""
    both = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
    given = [(name, value) for name, value in both.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"M2-BERT: one of the arguments {list(both)} is needed, got {len(given)}")
    name, words = given[0]
    ids = words is input_ids
    if not (words.dtype in (torch.int64, torch.int32) if ids else words.is_floating_point()):
        kind = "int64 or int32" if ids else "floating"
        raise ValueError(f"M2-BERT: argument {name!r} must be {kind}, got {words.dtype}")
    width, longest = () if ids else (config.hidden_size,), config.max_position_embeddings
    fits = words.dim() == 2 + len(width) and words.shape[2:] == width
    if not fits or not 1 <= words.shape[1] <= longest:
        too_long = fits and words.shape[1] > longest
        raise ValueError(
            f"M2-BERT: argument {name!r} must have shape {f'(B, L, {width[0]})' if width else '(B, L)'} with "
            f"1 <= L <= {longest}, got {tuple(words.shape)}"
            + ("; monarch_ops.m2bert.warm_start makes a model for longer inputs" if too_long else "")
        )
    return words


def checked_mask(attention_mask: Tensor, shape: torch.Size) -> Tensor:
    """The mask as bool; rows other than ones followed by zeros are refused (where there is something to look at)."""
    if attention_mask.shape != shape:
        raise ValueError(
            f"M2-BERT: argument 'attention_mask' must have the shape of the text, {tuple(shape)}, "
            f"got {tuple(attention_mask.shape)}"
        )
    mask = attention_mask.to(torch.bool)
    wrong = ~mask[:, 0] | (~mask[:, :-1] & mask[:, 1:]).any(1)
    if not torch.compiler.is_compiling() and not mask.is_meta and bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        found = "a zero before a one" if bool(mask[row].any()) else "zeros only (a text without a token)"
        raise ValueError(
            "M2-BERT: argument 'attention_mask' must be ones followed by zeros in every row (right padding), "
            f"got {found} in row {row}"
        )
    return mask


class M2BertModel(M2BertPreTrainedModel):
    """The encoder: hidden states of every token and, unless made without pooler, one vector per text.

    ``torch.compile`` makes a graph for every length L, also with ``dynamic=True``, of which
    ``torch._dynamo.config.recompile_limit`` allows 8: pad texts to a few lengths, or raise it. Compiled, it computes
    its filters in every call, which evaluation without gradients otherwise keeps. ``torch.export`` needs a fixed L.
    """

    def __init__(self, config: M2BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = M2BertEmbeddings(config)
        self.encoder = M2BertEncoder(config)
        self.pooler = M2BertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        if not isinstance(value, nn.Embedding):
            raise TypeError(f"M2BertModel: argument 'value' must be an Embedding, got {type(value).__name__}")
        self.embeddings.word_embeddings = value

    def limit_filter_cache(self, mib: int) -> None:
        """Let every filter keep at most `mib` MiB of prepared spectra between calls (default 256; 0: none).

        Only evaluation without gradients keeps any. A spectrum takes 8 H M bytes in float32, M the :func:`fft_length`
        of the text, so the 24 filters of the 80M model keep 1.1 GiB for texts of 8k tokens and 4.5 GiB for 32k;
        computing them in every call takes time instead. See also :meth:`clear_filter_cache`.
        """
        for cache in self._filter_caches():
            cache.max_bytes = mib << 20

    def clear_filter_cache(self) -> None:
        """Forget the spectra that evaluation keeps, as ``train()`` and ``eval()`` do.

        Needed only where filters were changed through ``parameter.data``, as some helpers for averaged weights do:
        PyTorch does not count such changes. On the CPU a change of all parameters is seen without it.
        """
        for cache in self._filter_caches():
            cache.clear()

    def _filter_caches(self) -> list[SpectrumCache]:
        return [c for module in self.modules() if isinstance(module, M2BertMixer) for c in module.filter_caches()]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_ids: (B, L) int64 or int32, L at most ``max_position_embeddings``.
            attention_mask: (B, L), 1 for tokens and 0 for padding on the right, at least one token per row; None means
                no padding. With ``padding="official"`` only the pooling "mean" makes use of it.
            token_type_ids: (B, L) int64; None means zeros.
            inputs_embeds: (B, L, H) word vectors instead of `input_ids`.
            output_hidden_states: also return what enters the first layer and what every layer returns.
            output_attentions: there are none; true is refused.
            return_dict: false for a tuple instead of an output object.

        Returns:
            ``last_hidden_state`` (B, L, H), ``pooler_output`` (B, H) and, when asked for, ``hidden_states``, a tuple of
            ``num_hidden_layers + 1`` tensors (B, L, H). What stands at padding is without meaning.
        """
        if output_attentions:
            raise ValueError("M2-BERT: argument 'output_attentions' must be false, a model without attention has none")
        words = checked_words(input_ids, inputs_embeds, self.config)
        lengths = None
        if attention_mask is not None:
            attention_mask = checked_mask(attention_mask, words.shape[:2])
            lengths = attention_mask.sum(1) if self.config.padding == "invariant" else None
        x = self.embeddings(words, token_type_ids)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states = [x] if wanted else None
        hidden = self.encoder(x, lengths, states)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=None if self.pooler is None else self.pooler(hidden, attention_mask),
            hidden_states=None if states is None else tuple(states),
        )
