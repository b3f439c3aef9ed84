"""Speed of llama.cpp on one model: prefill, and decode of several sequences at once. Prints JSON.

usage: python llama_cpp_speed.py FILE.gguf --threads N [--prefill 512] [--decode 32] [--batch 1,2,4,8,16] [--depth 0]

Counts as `mlxr bench` does: the first pass of each measurement only warms up, logits are computed for the last row of
a prompt and for every decoded token, and tokens are made up, so nothing is sampled. Of what is stored before a decoded
token the first 2048 tokens are computed, once, and those beyond are copies of them, moved to their positions.
"""

import argparse
import ctypes
import json
import time

import llama_cpp as lc

COMPUTED_TOKENS = 2048
# The sequence that copies pass through.
SPARE = 1


class Model:
    def __init__(self, path, threads, n_ctx, n_seqs, is_deep):
        # Kept, since the library goes on calling it.
        self.silent = lc.llama_log_callback(lambda *_: None)
        lc.llama_log_set(self.silent, ctypes.c_void_p(0))
        lc.llama_backend_init()
        self.model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        params = lc.llama_context_default_params()
        params.n_ctx = n_ctx * n_seqs
        params.n_seq_max = max(n_seqs, SPARE + 1) if is_deep else n_seqs
        params.kv_unified = is_deep
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        self.context = lc.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp has no memory for {n_seqs} sequences of {n_ctx} tokens")
        self.n_vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))
        # What `fill` computed.
        self.state = None

    def forget(self):
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)

    def step(self, rows):
        """One pass over `rows` of (token, position, sequence, whether its logits are wanted)."""
        batch = lc.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        if lc.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama.cpp refused a batch")
        lc.llama_get_logits_ith(self.context, -1)
        lc.llama_batch_free(batch)

    def token(self, i):
        return i * 2654435761 % 2**32 % self.n_vocab

    def prefill(self, sequence, n_tokens):
        for start in range(0, n_tokens, 512):
            end = min(start + 512, n_tokens)
            self.step([(self.token(i), i, sequence, i + 1 == end) for i in range(start, end)])

    def fill(self, sequence, n_tokens):
        """Stores tokens: computed the first time, copied after that."""
        if self.state is None:
            self.prefill(sequence, n_tokens)
            size = lc.llama_state_seq_get_size(self.context, sequence)
            self.state = (ctypes.c_uint8 * size)()
            lc.llama_state_seq_get_data(self.context, self.state, size, sequence)
        elif lc.llama_state_seq_set_data(self.context, self.state, len(self.state), sequence) == 0:
            raise SystemExit("llama.cpp has no room for copies")

    def repeat(self, n_filled, n_tokens):
        """Stores sequence 0, which is filled with `n_filled` tokens, over and over up to `n_tokens`."""
        memory = lc.llama_get_memory(self.context)
        for start in range(n_filled, n_tokens, n_filled):
            self.fill(SPARE, n_filled)
            lc.llama_memory_seq_add(memory, SPARE, 0, -1, start)
            lc.llama_memory_seq_cp(memory, SPARE, 0, 0, -1)
            lc.llama_memory_seq_rm(memory, SPARE, 0, -1)
        lc.llama_memory_seq_rm(memory, 0, n_tokens, -1)
        # Keys are turned to their new positions by the next step.
        self.step([(0, n_tokens, 0, True)])
        lc.llama_memory_seq_rm(memory, 0, n_tokens, -1)


def seconds_of_prefill(model, n_tokens):
    model.forget()
    start = time.perf_counter()
    model.prefill(0, n_tokens)
    return time.perf_counter() - start


def seconds_of_decode(model, n_tokens, n_seqs, depth):
    model.forget()
    for sequence in range(n_seqs if depth else 0):
        model.fill(sequence, min(depth, COMPUTED_TOKENS))
    if depth > COMPUTED_TOKENS:
        model.repeat(COMPUTED_TOKENS, depth)
    start = time.perf_counter()
    for i in range(n_tokens):
        model.step([(model.token(i + 31 * s), depth + i, s, True) for s in range(n_seqs)])
    return time.perf_counter() - start


def numbers(text):
    return [int(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prefill", type=numbers, default=[512])
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--batch", type=numbers, default=[1])
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    n_ctx = max([args.depth + args.decode + 1, *(n + 1 for n in args.prefill)])
    is_deep = args.depth > COMPUTED_TOKENS
    if is_deep and args.batch != [1]:
        raise SystemExit(f"beyond {COMPUTED_TOKENS} stored tokens one sequence alone is measured")
    # Copies are whole, and the last one is cut.
    room = -(-args.depth // COMPUTED_TOKENS) * COMPUTED_TOKENS - args.depth if is_deep else 0
    model = Model(args.model, args.threads, -(-(n_ctx + room) // 256) * 256, max(args.batch), is_deep)
    results = {}

    def measure(name, n_tokens, run):
        run()
        times = sorted(run() for _ in range(args.repeats))
        middle = (times[(len(times) - 1) // 2] + times[len(times) // 2]) / 2
        results[name] = n_tokens / middle

    for n in args.prefill:
        if n > 0:
            measure(f"pp{n}", n, lambda n=n: seconds_of_prefill(model, n))
    depth = f" @ d{args.depth}" if args.depth else ""
    for n_seqs in args.batch if args.decode else []:
        name = f"tg{args.decode}{depth}" + (f" x{n_seqs}" if n_seqs > 1 else "")
        measure(name, args.decode * n_seqs, lambda n=n_seqs: seconds_of_decode(model, args.decode, n, args.depth))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
