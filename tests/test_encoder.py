"""M2-BERT in sentence-transformers and mteb: encoding, saving, training, evaluation."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tiny_encoder import TOO_LONG, WORDS, save_checkpoint, texts, tiny_tokenizer
from tiny_m2bert import LONGEST, tiny, tiny_config
from tokenizers.processors import TemplateProcessing

from monarch_ops.m2bert import M2BertForMaskedLM, M2BertModel
from monarch_ops.retrieval import Encoder, InputError, embed, load_encoder
from monarch_ops.retrieval.encoder import fingerprint

pytestmark = pytest.mark.one_thread
TEXTS = [*texts(12), "", TOO_LONG]


def pooled(model, tokenizer, text: str, **options) -> np.ndarray:
    """What the model itself makes of one text, alone."""
    tokens = tokenizer(text, truncation=True, max_length=LONGEST, return_tensors="pt", **options)
    with torch.no_grad():
        return model(tokens["input_ids"], tokens["attention_mask"]).pooler_output[0].numpy()


@pytest.fixture
def encoder() -> SentenceTransformer:
    return SentenceTransformer(modules=[Encoder(tiny(), tiny_tokenizer())], prompts={"query": "find "}, device="cpu")


# ---- encode ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"pooling": "mean"}, {"padding": "official"}], ids=str)
def test_encode_gives_the_pooled_vector_of_each_text(options):
    model, tokenizer = tiny(**options), tiny_tokenizer()
    encoder = SentenceTransformer(modules=[Encoder(model, tokenizer)], device="cpu")
    padding = {"padding": "max_length"} if options.get("padding") == "official" else {}
    expected = np.stack([pooled(model, tokenizer, text, **padding) for text in TEXTS])
    for batch_size in (1, 5, len(TEXTS)):
        np.testing.assert_allclose(encoder.encode(TEXTS, batch_size=batch_size), expected, atol=5e-6)
    together = embed(encoder, TEXTS, normalize=False, tokens_per_batch=100)
    np.testing.assert_allclose(together, expected, atol=5e-6)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2


def test_a_batch_is_as_wide_as_its_longest_text(encoder):
    features = encoder.preprocess(["alpha beta", "alpha"])
    assert features["input_ids"].shape == (2, 4)
    assert features["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert encoder.preprocess([TOO_LONG, "alpha"])["input_ids"].shape == (2, LONGEST)
    assert (encoder.max_seq_length, encoder.get_embedding_dimension()) == (LONGEST, 64)


def test_batches_hold_so_many_tokens(encoder):
    widths = []
    encoder[0].register_forward_pre_hook(lambda _, args: widths.append(tuple(args[0]["input_ids"].shape)))
    done = []
    embed(encoder, TEXTS, tokens_per_batch=100, on_progress=done.append)
    assert all(rows * width <= 100 or rows == 1 for rows, width in widths)
    assert [rows for rows, _ in widths] == done
    assert sum(done) == len(TEXTS) > 2 * len(done)
    assert [width for _, width in widths] == sorted((width for _, width in widths), reverse=True)


def test_encode_normalizes_and_prompts(encoder):
    unit = encoder.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(embed(encoder, TEXTS), unit, atol=5e-6)
    asked = encoder.encode(["find alpha"])
    for same in (encoder.encode_query(["alpha"]), encoder.encode(["alpha"], prompt_name="query"),
                 embed(encoder, ["alpha"], task="query", normalize=False),
                 embed(encoder, ["alpha"], prompt="find ", normalize=False)):  # fmt: skip
        np.testing.assert_allclose(same, asked, atol=5e-6)
    assert np.abs(encoder.encode_document(["alpha"]) - asked).max() > 1e-3
    assert embed(encoder, []).shape == (0, 64)


def test_encode_in_several_processes(encoder):
    pool = encoder.start_multi_process_pool(["cpu", "cpu"])
    try:
        there = encoder.encode(TEXTS, pool=pool, chunk_size=4)
    finally:
        encoder.stop_multi_process_pool(pool)
    np.testing.assert_allclose(there, encoder.encode(TEXTS), atol=5e-6)


def test_embed_refuses(encoder):
    with pytest.raises(TypeError, match="'texts' must be a sequence of strings, got one string"):
        embed(encoder, "alpha")
    assert embed(encoder, ["alpha", ""]).shape == (2, 64)  # of special tokens
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A")
    bare = SentenceTransformer(modules=[Encoder(tiny(), tokenizer)], device="cpu")
    with pytest.raises(ValueError, match=r"at least one token in every text, .*got '' as text 2, of which a tokenizer"):
        embed(bare, ["alpha", "alpha beta", "", "beta"])
    assert embed(bare, ["", "alpha"], prompt="find ").shape == (2, 64)
    with pytest.raises(ValueError, match=r"zeros only \(a text without a token\) in row 1"):
        bare.encode(["alpha", ""])


# ---- folders ---------------------------------------------------------------------------------------------------------

READ = """
import sys
import numpy as np
import monarch_ops.retrieval
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", local_files_only=True)
np.save(sys.argv[2], model.encode(sys.argv[3:]))
"""


def test_a_saved_model_is_read_by_another_process(encoder, tmp_path):
    encoder.max_seq_length = 30
    encoder.save(str(tmp_path / "model"))
    command = [sys.executable, "-c", READ, str(tmp_path / "model"), str(tmp_path / "vectors.npy"), *TEXTS]
    subprocess.run(command, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), encoder.encode(TEXTS), atol=5e-6)
    again = load_encoder(tmp_path / "model", "cpu")
    assert again.max_seq_length == 30
    assert again.prompts["query"] == "find "
    assert fingerprint(again) == fingerprint(encoder)


def test_a_folder_of_transformers_has_the_model_s_own_pooling(tmp_path):
    model = save_checkpoint(tmp_path)
    encoder = load_encoder(tmp_path, "cpu")
    expected = np.stack([pooled(model, tiny_tokenizer(), text) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=5e-6)


def test_fingerprint_tells_models_apart(encoder):
    first = fingerprint(encoder)
    encoder.encode(TEXTS)
    assert fingerprint(encoder) == first
    encoder.max_seq_length = 30
    shorter = fingerprint(encoder)
    with torch.no_grad():
        encoder[0].auto_model.pooler.dense.bias[3] += 1e-6
    assert len({first, shorter, fingerprint(encoder)}) == 3


def test_encoder_refuses(tmp_path):
    model, tokenizer = tiny(), tiny_tokenizer()
    with pytest.raises(TypeError, match=r"'model' must be an M2BertModel .*, got M2BertForMaskedLM"):
        Encoder(M2BertForMaskedLM(model.config), tokenizer)
    with pytest.raises(ValueError, match=f"'max_seq_length' must be from 1 to {LONGEST}, got {LONGEST + 1}"):
        Encoder(model, tokenizer, max_seq_length=LONGEST + 1)
    with pytest.raises(ValueError, match="'tokenizer' must have at most 20 tokens, got"):
        Encoder(tiny(vocab_size=20), tokenizer)
    for change, message in (({"padding_side": "left"}, "pad on the right, got padding_side='left'"),
                            ({"pad_token": None}, "have a padding token, got none")):  # fmt: skip
        other = tiny_tokenizer()
        for name, value in change.items():
            setattr(other, name, value)
        with pytest.raises(ValueError, match=f"'tokenizer' must {message}"):
            Encoder(model, other)
    with pytest.raises(InputError, match=r"must be a folder with a model, got .*gone, no folder"):
        load_encoder(tmp_path / "gone")
    with pytest.raises(InputError, match=r"must be a folder with a model, got .*, one with neither modules.json nor"):
        load_encoder(tmp_path)
    with pytest.raises(ValueError, match="'tokens_per_batch' must be at least 1, got 0"):
        embed(load_encoder(save_checkpoint(tmp_path) and tmp_path, "cpu"), ["alpha"], tokens_per_batch=0)


# ---- training and evaluation -----------------------------------------------------------------------------------------

QUERIES = {f"q{i}": f"find {word}" for i, word in enumerate(WORDS)}
DOCUMENTS = {f"d{i}": f"all about {word} and more {word}" for i, word in enumerate(WORDS)}
RELEVANT = {f"q{i}": {f"d{i}"} for i in range(len(WORDS))}


def test_trainer_and_evaluator(tmp_path):
    model = M2BertModel(tiny_config(pooling="mean", hidden_dropout_prob=0.0))
    encoder = SentenceTransformer(modules=[Encoder(model, tiny_tokenizer())], device="cpu")
    judge = InformationRetrievalEvaluator(QUERIES, DOCUMENTS, RELEVANT, mrr_at_k=[10], show_progress_bar=False)
    before = judge(encoder)["cosine_mrr@10"]
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=60, per_device_train_batch_size=20, learning_rate=3e-3, report_to="none",
        logging_strategy="no", save_strategy="steps", save_steps=60, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    pairs = Dataset.from_dict({"anchor": list(QUERIES.values()), "positive": list(DOCUMENTS.values())})
    loss = MultipleNegativesRankingLoss(encoder)
    SentenceTransformerTrainer(encoder, arguments, train_dataset=pairs, loss=loss).train()
    after = judge(encoder)["cosine_mrr@10"]
    assert after > before + 0.3
    kept = load_encoder(tmp_path / "checkpoint-60", "cpu")
    np.testing.assert_allclose(kept.encode(TEXTS), encoder.encode(TEXTS), atol=5e-6)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="mteb needs Python 3.11")
def test_mteb(encoder):
    mteb = pytest.importorskip("mteb")
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Greek(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Greek", description="Letters.", reference=None, type="Retrieval", category="t2t", modalities=["text"],
            eval_splits=["test"], eval_langs=["eng-Latn"], main_score="ndcg_at_10", date=None, domains=None,
            dataset={"path": "local", "revision": "1"}, task_subtypes=None, license=None, annotations_creators=None,
            dialect=None, sample_creation=None, bibtex_citation=None,
        )  # fmt: skip

        def load_data(self, **_) -> None:
            self.corpus = {"test": {key: {"title": "", "text": text} for key, text in DOCUMENTS.items()}}
            self.queries = {"test": QUERIES}
            self.relevant_docs = {"test": {q: dict.fromkeys(found, 1) for q, found in RELEVANT.items()}}
            self.convert_v1_dataset_format_to_v2(num_proc=None)
            self.data_loaded = True

    result = mteb.evaluate(encoder, Greek(), cache=None, show_progress_bar=False)
    judge = InformationRetrievalEvaluator(QUERIES, DOCUMENTS, RELEVANT, ndcg_at_k=[10], show_progress_bar=False)
    scores = result[0].scores["test"][0]
    assert scores["ndcg_at_10"] == pytest.approx(judge(encoder)["cosine_ndcg@10"], abs=1e-4)
