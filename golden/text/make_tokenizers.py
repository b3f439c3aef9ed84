"""Small tokenizers and the ids the reference libraries give for awkward texts.

usage: python golden/text/make_tokenizers.py [--llama2 MODEL] [--house FOLDER] [--out FOLDER]

Trains, on the public-domain sentences below, one tokenizer of each kind and writes it beside this script together with
`*.json` files of `{text, ids, decoded}`.
`--llama2` names a Llama 2 SentencePiece model and `--house` the bundled model's Hugging Face folder; their ids are
written too, the files themselves are not.
Needs golden/requirements.txt.
"""

import argparse
import base64
import io
import json
import pathlib
import random

import sentencepiece
import tiktoken
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = """The North Wind and the Sun disputed as to which was the most powerful, and agreed that he should be declared
the victor who could first strip a wayfaring man of his clothes. The North Wind first tried his power and blew with all
his might, but the keener his blasts, the closer the Traveler wrapped his cloak around him, until at last, resigning all
hope of victory, the Wind called upon the Sun to see what he could do. The Sun suddenly shone out with all his warmth.
The Traveler no sooner felt his genial rays than he took off one garment after another, and at last, fairly overcome with
heat, undressed and bathed in a stream that lay in his path. Persuasion is better than Force.
Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once or twice
she had peeped into the book her sister was reading, but it had no pictures or conversations in it, "and what is the use
of a book," thought Alice "without pictures or conversations?" So she was considering in her own mind (as well as she
could, for the hot day made her feel very sleepy and stupid), whether the pleasure of making a daisy-chain would be worth
the trouble of getting up and picking the daisies, when suddenly a White Rabbit with pink eyes ran close by her.
Café naïve Straße déjà-vu 北風と太陽 こんにちは 世界 你好 привет мир 안녕 123 4567 89 3.14 1,000 x = y + z; if (a != b) { return; }
""".split("\n")
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
FIXED = [
    "", " ", "  ", "   ", "\t", "\n", "\r\n\r\n", " \n \n", "Hello world", " Hello", "Hello  world  ", "it's we'LL 'Tis",
    "1234567 12 3.14", "Café cafe\u0301", "ﬁne ①②③ ＡＢＣ ｶﾞ", "北風と太陽", "😀👩‍👩‍👧🇩🇪", "a\u00a0b\u3000c\u200bd\u2028e\u0085f",
    "<|im_start|>user\nhi<|im_end|>", "<s>[INST] x [/INST]</s>", "<unk>", "<0x41>", "▁▁a ▁", "\u0000\u0001\u007f\ufffd\ufeff",
    "ſ's ſTOP 'ſ K", "İstanbul ǅ ß ẞ", "हिन्दी ไทย বাংলা", "x" * 200, " " * 50 + "end", "ab" * 60, "\u0301\u0301a", "[CLS] a [MASK]",
    "don't stop, is n't it ? yes !", "uncharacteristically",
]
RANGES = [(0x20, 0x7E)] * 6 + [
    (0x09, 0x0D), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0xDFF), (0x1E00, 0x1FFF),
    (0x2000, 0x206F), (0x2070, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFB00, 0xFDFF), (0xFE00, 0xFFFD),
    (0x1F300, 0x1FAFF), (0x20000, 0x20100), (0x0, 0x10FFFF),
]


def texts(n_random=150, seed=7):
    rng = random.Random(seed)
    words = " ".join(CORPUS).split() + SPECIALS + ["  ", "\n", "\n\n", "\t", "'s", "'LL"]
    made = list(FIXED)
    for i in range(n_random):
        parts = []
        for _ in range(rng.randrange(1, 12)):
            if rng.random() < 0.5:
                parts.append(rng.choice(words))
            else:
                lo, hi = rng.choice(RANGES)
                for _ in range(rng.randrange(1, 4)):
                    point = rng.randint(lo, hi)
                    if not 0xD800 <= point <= 0xDFFF:
                        parts.append(chr(point))
            if rng.random() < 0.4:
                parts.append(" ")
        made.append("".join(parts))
    return made


def train_hf(out):
    made = {}

    def add(name, tokenizer, trainer):
        tokenizer.train_from_iterator(CORPUS, trainer)
        made[name] = tokenizer

    byte_level = tokenizers.Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    byte_level.decoder = decoders.ByteLevel()
    add("byte-level", byte_level, trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))

    split = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split.normalizer = normalizers.NFC()
    split.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    split.decoder = decoders.ByteLevel()
    add("split", split, trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    split.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", split.token_to_id("<|endoftext|>"))])

    blocks = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    blocks.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    blocks.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    add("blocks", blocks, trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>"] + [f"<0x{b:02X}>" for b in range(256)], show_progress=False, max_token_length=12))

    wordpiece = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer()
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wordpiece.decoder = decoders.WordPiece()
    add("wordpiece", wordpiece, trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False))

    metaspace = tokenizers.Tokenizer(models.Unigram())
    metaspace.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    metaspace.pre_tokenizer = pre_tokenizers.Metaspace()
    metaspace.decoder = decoders.Metaspace()
    add("metaspace", metaspace, trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False))

    for name, tokenizer in made.items():
        (out / f"{name}.tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8")
        yield name, lambda text, t=tokenizer: (t.encode(text).ids, None), tokenizer


def train_sentencepiece(out):
    settings = {
        "unigram": dict(model_type="unigram", vocab_size=420, byte_fallback=True),
        "unigram-unk": dict(model_type="unigram", vocab_size=260, character_coverage=0.98, normalization_rule_name="identity",
                            user_defined_symbols=["<sep>", "▁▁"]),
        "bpe-identity": dict(model_type="bpe", vocab_size=700, byte_fallback=True, normalization_rule_name="identity",
                             remove_extra_whitespaces=False, user_defined_symbols=["<sep>", "Wind"]),
        "bpe-suffix": dict(model_type="bpe", vocab_size=300, character_coverage=0.98, normalization_rule_name="identity",
                           treat_whitespace_as_suffix=True),
    }
    for name, options in settings.items():
        file = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_writer=file, minloglevel=2, num_threads=1, hard_vocab_limit=False, **options)
        (out / f"{name}.model").write_bytes(file.getvalue())
        yield name, sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())


def cases(encode, decode=None):
    rows = []
    for text in texts():
        row = {"text": text, "ids": encode(text)}
        if decode is not None:
            row["decoded"] = decode(row["ids"])
        rows.append(row)
    return rows


def write(path, rows):
    versions = {m.__name__: m.__version__ for m in (tokenizers, sentencepiece, tiktoken)}
    lines = ",\n".join(json.dumps(row, ensure_ascii=True) for row in rows)
    path.write_text(f'{{"versions": {json.dumps(versions)}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")


def main():
    parser = argparse.ArgumentParser()
    here = pathlib.Path(__file__).parent
    parser.add_argument("--llama2", type=pathlib.Path)
    parser.add_argument("--house", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=here)
    args = parser.parse_args()
    out = args.out

    for name, _, tokenizer in train_hf(out):
        # The libraries disagree about bytes that are no text; only texts that survive are compared after decoding.
        def decode(ids, t=tokenizer):
            text = t.decode(ids, skip_special_tokens=True)
            return None if "\ufffd" in text else text
        write(out / f"{name}.json", cases(lambda text, t=tokenizer: t.encode(text).ids, decode))

    for name, processor in train_sentencepiece(out):
        write(out / f"{name}.json", cases(processor.encode, lambda ids, p=processor: None if "\ufffd" in p.decode(ids) else p.decode(ids)))

    ranks = {bytes([b]): b for b in range(256)}
    for i, pair in enumerate(["th", "he", "the", " the", "in", "ing", " a", "an", " an", " and", "  ", "    ", "\n\n", "12"]):
        ranks[pair.encode()] = 256 + i
    pattern = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    encoding = tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks, special_tokens={t: 270 + i for i, t in enumerate(SPECIALS)})
    (out / "small.tiktoken").write_text("".join(f"{base64.b64encode(t).decode()} {r}\n" for t, r in ranks.items()))
    write(out / "small.json", cases(lambda text: encoding.encode(text, allowed_special="all"), encoding.decode))

    if args.llama2:
        processor = sentencepiece.SentencePieceProcessor(str(args.llama2))
        write(out / "llama2-sentencepiece.json",
              cases(processor.encode, lambda ids: None if "\ufffd" in processor.decode(ids) else processor.decode(ids)))
    if args.house:
        house = tokenizers.Tokenizer.from_file(str(args.house / "tokenizer.json"))
        write(out / "house.json", cases(lambda text: house.encode(text).ids, lambda ids: house.decode(ids, skip_special_tokens=False)))


if __name__ == "__main__":
    main()
