"""The tiny checkpoints as GGUF, made by llama.cpp's own converter.

usage: python golden/tiny_gguf.py LLAMA_CPP [FAMILY...]

LLAMA_CPP is the `vendor/llama.cpp` folder of llama-cpp-python's source archive (PyPI).
Writes `tiny/FAMILY/model.gguf` in f32, `tiny/gpt_oss/model-mxfp4.gguf` and, as a file in parts, `tiny/llama/split/`.
The converter knows a tokenizer by a hash of what it does and some families by `tokenizer.model` only;
the tiny tokenizer is none of those, so its name and its way of reading are given here.
"""

import argparse
import pathlib
import runpy
import sys

from families import FAMILIES

TINY = pathlib.Path(__file__).with_name("tiny")
PRE_TOKENIZER = "gpt-2"


def patch_vocab(llama_cpp, pre_tokenizer=PRE_TOKENIZER):
    sys.path.insert(0, str(llama_cpp))
    import conversion
    from conversion import base

    conversion.load_all_models()
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre_tokenizer
    for model in base.ModelBase._model_classes[base.ModelType.TEXT].values():
        model.set_vocab = lambda self: self._set_vocab_gpt2()


def convert(llama_cpp, folder, out, *options, kind="f32"):
    out.parent.mkdir(parents=True, exist_ok=True)
    # llama.cpp wants certain special tokens where the name holds "phi3"
    name = f"tiny {folder.parent.name}".replace("phi3", "phi")
    sys.argv = ["convert", str(folder), "--outfile", str(out), "--outtype", kind, "--model-name", name, *options]
    runpy.run_path(str(llama_cpp / "convert_hf_to_gguf.py"), run_name="__main__")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("llama_cpp", type=pathlib.Path)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    args = parser.parse_args()
    patch_vocab(args.llama_cpp)
    for family in args.families:
        plain = "hf-bf16" if family == "gpt_oss" else "hf"
        convert(args.llama_cpp, TINY / family / plain, TINY / family / "model.gguf")
    if "gpt_oss" in args.families:
        convert(args.llama_cpp, TINY / "gpt_oss" / "hf", TINY / "gpt_oss" / "model-mxfp4.gguf")
    if "llama" in args.families:
        convert(args.llama_cpp, TINY / "llama" / "hf", TINY / "llama" / "split" / "model.gguf", "--split-max-tensors", "9")


if __name__ == "__main__":
    main()
