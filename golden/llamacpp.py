"""Reference outputs of llama.cpp, through llama-cpp-python's low-level binding.

usage: python golden/llamacpp.py logits FILE.gguf [--text TEXT]... [--ids 1,2,3]... [--every N] [--top N] [--out OUT.json]
       python golden/llamacpp.py quantize IN.gguf OUT.gguf TYPE
       python golden/llamacpp.py perplexity FILE.gguf TEXT_FILE [--chunks N]
       python golden/llamacpp.py tiny [FAMILY...]

logits: tokenisation and the best logits at every N-th position and at the last one.
quantize: llama.cpp's own file of a type (Q4_K_M, Q8_0, IQ4_XS, ...).
perplexity: over chunks of 512 tokens, the second half of each scored.
tiny: checks that llama.cpp, reading `tiny/FAMILY/model.gguf`, agrees with the recorded outputs of transformers.
"""

import argparse
import ctypes
import json
import pathlib

import llama_cpp
import numpy as np

from families import FAMILIES
from record import versions, write_json

TINY = pathlib.Path(__file__).with_name("tiny")
# llama.cpp reads the window of phi3 and leaves it out of the forward.
LEFT_OUT = {"phi3": {"sliding_window": None}}
# llama.cpp's contexts are multiples of 256, past this original context: only the prompt beyond it agrees.
COMPARED = {"phi3_longrope": slice(2, 3)}
TOLERANCE = 2e-5
# llama.cpp takes GELU from a table of half-precision values.
GELU_TOLERANCE = 2e-3


@llama_cpp.llama_log_callback
def be_quiet(_level, _text, _data):
    pass


class LlamaCpp:
    """One GGUF file in llama.cpp: one thread, float32 cache, no flash attention."""

    def __init__(self, path, n_ctx=2048):
        llama_cpp.llama_log_set(be_quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"{path}: llama.cpp cannot load it")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.swa_full = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"{path}: llama.cpp cannot make a context")

    def close(self):
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def tokenize(self, text, add_special=False, parse_special=True):
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 8))()
        n = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, len(ids), add_special, parse_special)
        return list(ids[:n])

    def logits(self, ids, past=0):
        """All logits of every position of `ids`, which follow `past` positions already in the cache."""
        if past == 0:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, past + i, 1, 0, 1
        rc = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_batch_free(batch)
        if rc:
            raise SystemExit(f"llama_decode failed: {rc}")
        rows = [llama_cpp.llama_get_logits_ith(self.context, i)[: self.n_vocab] for i in range(len(ids))]
        return np.array(rows, dtype=np.float32)

    def greedy(self, ids, n):
        """`n` greedy ids after `ids`, through the cache."""
        row, out = self.logits(ids)[-1], []
        for i in range(n):
            out.append(int(row.argmax()))
            row = self.logits(out[-1:], past=len(ids) + i)[0]
        return out


def quantize(source, target, kind):
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = 1
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    llama_cpp.llama_log_set(be_quiet, ctypes.c_void_p(0))
    rc = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    if rc:
        raise SystemExit(f"llama_model_quantize failed: {rc}")


def top(row, n):
    return [[int(i), round(float(row[i]), 5)] for i in np.argsort(-row, kind="stable")[:n]]


def run_logits(args):
    model = LlamaCpp(args.file)
    records = []
    for text, ids in [(t, None) for t in args.text] + [(None, [int(i) for i in s.split(",")]) for s in args.ids]:
        ids = model.tokenize(text) if ids is None else ids
        logits = model.logits(ids)
        positions = sorted(set(range(0, len(ids), args.every)) | {len(ids) - 1})
        record = {"text": text, "ids": ids, "top": {str(p): top(logits[p], args.top) for p in positions}}
        record["greedy_ids"] = model.greedy(ids, args.greedy)
        records.append(record)
    result = {"versions": versions("llama-cpp-python"), "file": args.file.name, "prompts": records}
    if args.out:
        write_json(args.out, result)
    else:
        print(json.dumps(result, ensure_ascii=False))


def perplexity(path, text, n_chunks, n_ctx=512):
    """Perplexity and its standard error, the way llama.cpp's own tool counts: no BOS, the second half of each chunk."""
    model = LlamaCpp(path, n_ctx)
    ids = model.tokenize(text, parse_special=False)
    losses = []
    for start in range(0, min(len(ids) // n_ctx, n_chunks) * n_ctx, n_ctx):
        chunk = ids[start : start + n_ctx]
        rows = model.logits(chunk)[n_ctx // 2 : -1].astype(np.float64)
        largest = rows.max(1)
        log_sums = np.log(np.exp(rows - largest[:, None]).sum(1)) + largest
        losses.append(log_sums - rows[np.arange(len(rows)), chunk[n_ctx // 2 + 1 :]])
    model.close()
    losses = np.concatenate(losses)
    value = float(np.exp(losses.mean()))
    return value, value * float(losses.std() / np.sqrt(len(losses) - 1)), len(losses)


def check_prompt(model, record):
    """The largest difference to the recorded logits, relative to the largest logit; greedy ids must be equal."""
    ids, greedy = record["ids"], record["greedy_ids"]
    logits = model.logits(ids + greedy)
    rows = {int(p): row for p, row in record["logits"].items()}
    rows |= {len(ids) - 1 + int(n): row for n, row in record["decode_logits"].items()}
    largest = max(np.abs(row).max() for row in rows.values())
    error = max(np.abs(logits[p] - row).max() for p, row in rows.items()) / largest
    return float(error), model.greedy(ids, len(greedy)) == greedy


def check_tiny(args):
    for family in args.families or FAMILIES:
        golden = json.loads((TINY / family / "golden.json").read_text())
        records = golden.get("gguf", golden)["prompts"]
        if family in LEFT_OUT:
            from tiny import build, run_prompts, with_changes, torch

            with torch.no_grad():
                records, _ = run_prompts(with_changes(build(family, golden["seed"]), family, LEFT_OUT[family]), family)
        results = []
        for record in records[COMPARED.get(family, slice(None))]:
            model = LlamaCpp(TINY / family / "model.gguf", n_ctx=256)
            results.append(check_prompt(model, record))
            model.close()
        print(f"{family}: llama.cpp differs by {[f'{e:.1e}' for e, _ in results]}, greedy equal {[g for _, g in results]}", flush=True)
        if not args.report_only:
            tolerance = GELU_TOLERANCE if family.startswith("gemma") else TOLERANCE
            assert all(error < tolerance and same for error, same in results), family


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    logits = commands.add_parser("logits")
    logits.add_argument("file", type=pathlib.Path)
    logits.add_argument("--text", action="append", default=[])
    logits.add_argument("--ids", action="append", default=[])
    logits.add_argument("--every", type=int, default=16)
    logits.add_argument("--top", type=int, default=50)
    logits.add_argument("--greedy", type=int, default=32)
    logits.add_argument("--out", type=pathlib.Path)
    one = commands.add_parser("quantize")
    one.add_argument("source", type=pathlib.Path)
    one.add_argument("target", type=pathlib.Path)
    one.add_argument("kind")
    loss = commands.add_parser("perplexity")
    loss.add_argument("file", type=pathlib.Path)
    loss.add_argument("text", type=pathlib.Path)
    loss.add_argument("--chunks", type=int, default=40)
    tiny = commands.add_parser("tiny")
    tiny.add_argument("families", nargs="*")
    tiny.add_argument("--report-only", action="store_true")
    args = parser.parse_args()
    if args.command == "logits":
        run_logits(args)
    elif args.command == "quantize":
        quantize(args.source, args.target, args.kind)
    elif args.command == "perplexity":
        value, error, n_tokens = perplexity(args.file, args.text.read_text(encoding="utf-8"), args.chunks)
        print(json.dumps({"file": args.file.name, "perplexity": value, "error": error, "n_tokens": n_tokens}))
    else:
        check_tiny(args)


if __name__ == "__main__":
    main()
