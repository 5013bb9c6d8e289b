"""Configuration and named sizes of M2-BERT."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

_SIZES = {"80m": (768, 3072), "110m": (960, 3840), "260m": (1536, 6144), "341m": (1792, 7168)}  # hidden, intermediate
_LENGTHS = {"128": 128, "2k": 2048, "8k": 8192, "32k": 32768}
_SMALL: dict[str, dict[str, Any]] = {
    "m2-bert-tiny": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 256, "hyena_filter_order": 16},
    "m2-bert-small": {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "intermediate_size": 256,
        "hyena_filter_order": 32,
        "hyena_w": 2.0,  # short filters to begin with, or the mean over thousands of tokens hides the tokens
        "max_position_embeddings": 8192,
        # position tables would stay untrained beyond the length of the training texts
        "use_positional_encodings": False,
        "hidden_dropout_prob": 0.0,
        "pooling": "mean",
    },
}


def _require(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"M2BertConfig: argument {name!r} must be one of {known}, got {value!r}")


class M2BertConfig(PretrainedConfig):
    """Sizes and options of an M2-BERT encoder (arXiv 2310.12109, 2402.07440).

    The names are those of BERT and, for what BERT does not have, of the published M2-BERT configuration files.

    Args:
        max_position_embeddings: longest input in tokens; also the length of the filters.
        hidden_act: "gelu"; the encoder has no other.
        hidden_dropout_prob, classifier_dropout: after the embeddings and within the MLPs; before the classifier (None:
            as everywhere).
        bidirectional: filters with reverse taps; otherwise the model is causal.
        residual_long_conv: a second, ungated long convolution around the mixer.
        hyena_training_additions: LayerNorm before the mixer.
        hyena_filter_order, hyena_emb_dim, hyena_w, hyena_w_mod: width, features, initial frequency and fixed frequency
            factor of the implicit filters (:class:`monarch_ops.nn.HyenaFilter`).
        filter_base_length: the length that their position features were made for, where that is not
            ``max_position_embeddings`` (:func:`warm_start` sets it).
        use_glu_mlp, use_monarch_mlp, monarch_mlp_nblocks: gated MLP; block-diagonal weights and their number of blocks.
        use_positional_encodings: learned position embeddings at the input.
        pooling: "cls" (position 0, published) or "mean" (over valid positions), then a dense layer and tanh.
        use_cls_token: the classifier takes the hidden state of position 0 as it is instead of the pooled vector.
        padding: "invariant" (the attention mask is honoured: a text has one embedding whatever it is padded to) or
            "official" (padding tokens take part, as in the published code).
    """

    model_type = "m2-bert"

    def __init__(
        self,
        vocab_size: int = 30528,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        intermediate_size: int = 3072,
        max_position_embeddings: int = 128,
        type_vocab_size: int = 2,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        classifier_dropout: float | None = None,
        layer_norm_eps: float = 1e-12,
        initializer_range: float = 0.02,
        pad_token_id: int = 0,
        bidirectional: bool = True,
        residual_long_conv: bool = True,
        hyena_training_additions: bool = False,
        hyena_filter_order: int = 128,
        hyena_emb_dim: int = 5,
        hyena_w: float = 10.0,
        hyena_w_mod: float = 1.0,
        filter_base_length: int | None = None,
        use_glu_mlp: bool = True,
        use_monarch_mlp: bool = True,
        monarch_mlp_nblocks: int = 4,
        use_positional_encodings: bool = True,
        pooling: str = "cls",
        use_cls_token: bool = False,
        padding: str = "invariant",
        **kwargs: Any,
    ) -> None:
        _require("hidden_act", hidden_act, ("gelu",))
        _require("pooling", pooling, ("cls", "mean"))
        _require("padding", padding, ("invariant", "official"))
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.classifier_dropout = classifier_dropout
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.bidirectional = bidirectional
        self.residual_long_conv = residual_long_conv
        self.hyena_training_additions = hyena_training_additions
        self.hyena_filter_order = hyena_filter_order
        self.hyena_emb_dim = hyena_emb_dim
        self.hyena_w, self.hyena_w_mod = hyena_w, hyena_w_mod
        self.filter_base_length = filter_base_length
        self.use_glu_mlp = use_glu_mlp
        self.use_monarch_mlp = use_monarch_mlp
        self.monarch_mlp_nblocks = monarch_mlp_nblocks
        self.use_positional_encodings = use_positional_encodings
        self.pooling, self.use_cls_token = pooling, use_cls_token
        self.padding = padding
        # the signature that transformers shows to type checkers lacks what goes through its **kwargs
        super().__init__(pad_token_id=pad_token_id, **kwargs)  # type: ignore[call-arg]

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> M2BertConfig:
        """A published size by name, ``m2-bert-{80m,110m,260m,341m}-{128,2k,8k,32k}``, or one of two small ones.

        ``m2-bert-small`` is what a CPU trains in minutes (2 layers, 8192 tokens, the demo's model), ``m2-bert-tiny`` is
        for tests.
        """
        if name in _SMALL:
            return cls(**(_SMALL[name] | overrides))
        parts = name.removeprefix("m2-bert-").split("-")
        if not name.startswith("m2-bert-") or len(parts) != 2 or parts[0] not in _SIZES or parts[1] not in _LENGTHS:
            known = [f"m2-bert-{size}-{length}" for size in _SIZES for length in _LENGTHS]
            raise ValueError(f"M2BertConfig.preset: argument 'name' must be one of {[*_SMALL, *known]}, got {name!r}")
        hidden, intermediate = _SIZES[parts[0]]
        sizes = {
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "max_position_embeddings": _LENGTHS[parts[1]],
        }
        return cls(**(sizes | overrides))
