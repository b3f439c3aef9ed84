"""Tiny random LLaVA checkpoints, images, and what transformers makes of them.

usage: python golden/vision/make.py

Writes `images/`, `NAME/` (a model folder as transformers saves it) and `NAME.json` beside this script. The seed is
searched as in `golden/tiny.py`: the first one whose greedy ids are clear and varied.
"""

import json
import math
import pathlib
import shutil
import sys

import numpy
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig, CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.image_utils import load_image

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from record import floats, versions, write_json  # noqa: E402
from tiny_tokenizer import CHAT_TEMPLATE, write_tokenizer  # noqa: E402

IMAGE_TOKEN = 288
VOCAB = 296
N_GREEDY = 24
MIN_MARGIN = 1e-2
NOTE = (
    "float32, CPU, eager attention. rows: what takes the placeholders' place, of the first image. logits: after the prompt. greedy_ids end nowhere before the last."
)
# As llava-hf's models have it: messages are lists of parts.
PARTS_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TEXT = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-05, "bos_token_id": 0, "eos_token_id": 2,
}
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 2, "image_size": 28, "patch_size": 7, "projection_dim": 16,
}
MODELS = {
    "llava": {
        "text": {"model_type": "llama", **TEXT}, "vision": VISION, "template": PARTS_TEMPLATE,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
    },
    # Everything that llava has in another way, and a template that takes texts alone.
    "llava_qwen2": {
        "text": {"model_type": "qwen2", **TEXT, "tie_word_embeddings": False},
        "vision": {**VISION, "hidden_act": "gelu", "layer_norm_eps": 1e-3, "num_attention_heads": 1},
        "template": CHAT_TEMPLATE,
        "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
        "multimodal_projector_bias": False, "projector_hidden_act": "gelu_pytorch_tanh",
    },
}
PROMPTS = [
    (["wide.png"], "What is this?"),
    (["wide.png", "tall.webp"], "Are the two alike? Say why, or why not, in a few words."),
    (["palette.gif"], "Once upon a time"),
    ([], "And without an image?"),
]


def draw(width, height, seed):
    """Waves, an edge and some noise: nothing that a wrong filter would leave as it is."""
    random = numpy.random.RandomState(seed)
    y, x = numpy.mgrid[0:height, 0:width]
    waves = [127 + 90 * numpy.sin(x / (2.0 + c) + seed) * numpy.cos(y / (3.0 + c)) for c in range(3)]
    pixels = numpy.stack(waves, -1) + random.randint(-30, 30, (height, width, 3))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = [250, 20, 120]
    return Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8))


def make_images():
    folder = HERE / "images"
    folder.mkdir(exist_ok=True)
    draw(61, 43, 1).save(folder / "wide.png")
    draw(30, 52, 2).save(folder / "tall.webp", lossless=True)
    draw(40, 40, 3).convert("P", palette=Image.Palette.ADAPTIVE, colors=32).save(folder / "palette.gif")
    draw(20, 17, 4).save(folder / "small.png")
    image = draw(48, 36, 5)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(folder / "alpha.png")
    draw(33, 45, 6).convert("L").save(folder / "grey.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    draw(64, 48, 7).save(folder / "turned.jpeg", quality=92, exif=exif)


def random_value(name, shape, generator):
    noise = torch.randn(shape, generator=generator)
    if "norm" in name or "layrnorm" in name:
        return 0.3 * noise + (0.0 if name.endswith("bias") else 1.0)
    if name.endswith("bias"):
        return 0.3 * noise
    if "embed_tokens" in name or "lm_head" in name:
        return noise * 4.0 / math.sqrt(shape[-1])
    if "class_embedding" in name or "position_embedding" in name:
        return noise
    if "patch_embedding" in name:
        return noise * 2.0 / math.sqrt(math.prod(shape[1:]))
    if "multi_modal_projector.linear_2" in name:
        # As large as the embeddings beside them.
        return noise * 0.7 / math.sqrt(shape[-1])
    gain = 3.0 if any(part in name for part in ("o_proj", "down_proj")) else 1.5
    return noise * gain / math.sqrt(shape[-1])


def build(name, seed):
    spec = {key: value for key, value in MODELS[name].items() if key != "template"}
    text, vision = (AutoConfig.for_model(**json.loads(json.dumps(spec.pop(key)))) for key in ("text", "vision"))
    n_patches = (VISION["image_size"] // VISION["patch_size"]) ** 2
    n_rows = n_patches + (spec["vision_feature_select_strategy"] == "full")
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=IMAGE_TOKEN, image_seq_length=n_rows, **spec
    )
    config._attn_implementation = "eager"
    model = LlavaForConditionalGeneration._from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter, value in sorted(model.named_parameters()):
        value.copy_(random_value(parameter, tuple(value.shape), generator).bfloat16().float())
    return model


def make_processor(folder, name):
    write_tokenizer(folder)
    (folder / "generation_config.json").unlink()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert tokenizer.convert_tokens_to_ids("<image>") == IMAGE_TOKEN
    size = VISION["image_size"]
    images = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    full = MODELS[name]["vision_feature_select_strategy"] == "full"
    return LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=VISION["patch_size"],
        vision_feature_select_strategy="full" if full else "default", chat_template=MODELS[name]["template"],
        num_additional_image_tokens=1,
    )


def render(processor, template, images, text):
    if template == CHAT_TEMPLATE:
        content = "<image>\n" * len(images) + text
    else:
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
    message = {"role": "user", "content": content}
    return processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)


def run(model, processor, template, images, text):
    prompt = render(processor, template, images, text)
    loaded = [load_image(str(HERE / "images" / image)) for image in images]
    inputs = processor(images=loaded or None, text=prompt, return_tensors="pt")
    ids = inputs["input_ids"]
    given = {"pixel_values": inputs["pixel_values"]} if images else {}
    out = model(input_ids=ids, use_cache=True, **given)
    first, greedy, margins = out.logits[0, -1], [], []
    row = first
    for _ in range(N_GREEDY):
        best = row.topk(2)
        margins.append((best.values[0] - best.values[1]).item())
        greedy.append(best.indices[0].item())
        out = model(input_ids=torch.tensor([greedy[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        row = out.logits[0, -1]
    record = {
        "images": images, "text": text, "prompt": prompt, "ids": ids[0].tolist(), "logits": floats(first),
        "greedy_ids": greedy, "min_margin": round(min(margins), 6),
    }
    if images:
        settings = model.config
        tower = model.model.vision_tower(given["pixel_values"][:1], output_hidden_states=True)
        hidden = tower.hidden_states[settings.vision_feature_layer]
        hidden = hidden[:, 1:] if settings.vision_feature_select_strategy == "default" else hidden
        record["rows"] = floats(model.model.multi_modal_projector(hidden)[0].flatten())
    return record


def make_model(name):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    processor = make_processor(folder, name)
    template = MODELS[name]["template"]
    for seed in range(400):
        model = build(name, seed)
        records = [run(model, processor, template, *prompt) for prompt in PROMPTS]
        # Ids above 2 are no ends of generation.
        is_clear = lambda r: (  # noqa: E731
            r["min_margin"] >= MIN_MARGIN and len(set(r["greedy_ids"])) > 8 and min(r["greedy_ids"]) > 2
        )
        # The answers to an image must be due to it.
        if all(is_clear(r) for r in records) and len({tuple(r["greedy_ids"]) for r in records}) == len(records):
            break
    else:
        raise SystemExit(f"{name}: no clear seed")
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    if name == "llava_qwen2":
        make_older(folder, processor)
    write_json(HERE / f"{name}.json", {
        "versions": versions("torch", "transformers", "tokenizers", "pillow"), "note": NOTE, "seed": seed, "prompts": records,
    })
    print(name, "seed", seed)


def make_older(folder, processor):
    """The names of tensors and files that models have which were published before transformers 5."""
    (folder / "processor_config.json").unlink()
    processor.image_processor.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    older = {name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in tensors.items()}
    save_file(older, path, metadata={"format": "pt"})


def make_pixels():
    """What becomes of each image, at the size of the models above and at one that enlarges."""
    sizes = {"28": (28, 28), "40x36": (40, 36)}
    out = {}
    for path in sorted((HERE / "images").iterdir()):
        image = load_image(str(path))
        for label, (edge, crop) in sizes.items():
            processor = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": crop, "width": crop})
            pixels = processor(images=image, return_tensors="np")["pixel_values"][0]
            # The levels of 0 to 255 that the values came from are whole numbers: exact, and short.
            mean, std = (numpy.array(v).reshape(3, 1, 1) for v in (processor.image_mean, processor.image_std))
            levels = (pixels.astype(numpy.float64) * std + mean) * 255
            assert numpy.abs(levels - levels.round()).max() < 1e-3
            out[f"{path.name} {label}"] = {
                "edge": edge, "crop": crop, "levels": levels.round().astype(int).flatten().tolist(),
                "first": floats(pixels.flatten()[:8], 8),
            }
    write_json(HERE / "pixels.json", {"versions": versions("transformers", "pillow", "numpy"), "images": out})


def main():
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    make_images()
    make_pixels()
    for name in MODELS:
        make_model(name)


if __name__ == "__main__":
    main()
