"""Writes a tiny language model with random weights: a real engine loads it and runs its real scheduler over nonsense.

The file is in the GGUF format, version 3: a head of typed values, the tensors' names and shapes, then their numbers.
"""

import array
import random
import struct
import sys
from pathlib import Path
from typing import Any

# Widths of the model: embedding, of one attention head, feed-forward; its layers.
WIDTH, HEAD, INNER, LAYERS = 64, 32, 192, 2
CONTEXT = 4096
SPECIAL = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Numbers of the types of values, and of tensors, in the format.
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
TENSOR_F32 = 0
NORMAL, CONTROL = 1, 3
ALIGNED = 32


def byte_letters() -> list[str]:
    """How byte-level vocabularies write bytes: visible ones as they are, the others as letters from 256 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def scalar(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return text(value)
    return struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}[kind], value)


def entry(name: str, kind: int, value: Any) -> bytes:
    """One typed value of the head; a list is an array of the type."""
    if not isinstance(value, list):
        return text(name) + struct.pack("<I", kind) + scalar(kind, value)
    items = b"".join(scalar(kind, item) for item in value)
    return text(name) + struct.pack("<IIQ", ARRAY, kind, len(value)) + items


def head(vocabulary: list[str], merges: list[str]) -> list[bytes]:
    kinds = [CONTROL if token in SPECIAL else NORMAL for token in vocabulary]
    return [
        entry("general.architecture", STRING, "llama"),
        entry("general.name", STRING, "tiny-random"),
        entry("general.file_type", UINT32, 0),
        entry("llama.context_length", UINT32, CONTEXT),
        entry("llama.embedding_length", UINT32, WIDTH),
        entry("llama.block_count", UINT32, LAYERS),
        entry("llama.feed_forward_length", UINT32, INNER),
        entry("llama.attention.head_count", UINT32, WIDTH // HEAD),
        entry("llama.attention.head_count_kv", UINT32, WIDTH // HEAD),
        entry("llama.rope.dimension_count", UINT32, HEAD),
        entry("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        entry("llama.vocab_size", UINT32, len(vocabulary)),
        entry("tokenizer.ggml.model", STRING, "gpt2"),
        entry("tokenizer.ggml.pre", STRING, "gpt-2"),
        entry("tokenizer.ggml.tokens", STRING, vocabulary),
        entry("tokenizer.ggml.token_type", INT32, kinds),
        entry("tokenizer.ggml.merges", STRING, merges),
        entry("tokenizer.ggml.bos_token_id", UINT32, SPECIAL.index("<s>")),
        entry("tokenizer.ggml.eos_token_id", UINT32, SPECIAL.index("</s>")),
        entry("tokenizer.ggml.padding_token_id", UINT32, SPECIAL.index("<pad>")),
        entry("tokenizer.ggml.eot_token_id", UINT32, SPECIAL.index("<|im_end|>")),
        entry("tokenizer.ggml.add_bos_token", BOOL, False),
        entry("tokenizer.chat_template", STRING, CHAT),
    ]


def tensors(words: int) -> list[tuple[str, list[int]]]:
    """Names and shapes, the innermost dimension first."""
    shapes: list[tuple[str, list[int]]] = [("token_embd.weight", [WIDTH, words])]
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        shapes += [(f"{block}{name}_norm.weight", [WIDTH]) for name in ("attn", "ffn")]
        shapes += [(f"{block}attn_{name}.weight", [WIDTH, WIDTH]) for name in ("q", "k", "v", "output")]
        shapes += [(f"{block}ffn_{name}.weight", [WIDTH, INNER]) for name in ("gate", "up")]
        shapes.append((f"{block}ffn_down.weight", [INNER, WIDTH]))
    return [*shapes, ("output_norm.weight", [WIDTH]), ("output.weight", [WIDTH, words])]


def write(path: Path) -> None:
    """Writes the model; always the same one."""
    letters = byte_letters()
    # One merge, since a vocabulary without any is refused.
    vocabulary = [*SPECIAL, *letters, "th"]
    values, shapes = head(vocabulary, ["t h"]), tensors(len(vocabulary))
    chance = random.Random(1)
    infos, data = b"", bytearray()
    for name, shape in shapes:
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        is_norm = name.endswith("_norm.weight")
        numbers = array.array("f", ((1.0 if is_norm else chance.gauss(0.0, 0.2)) for _ in range(count)))
        if sys.byteorder == "big":
            numbers.byteswap()
        infos += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        infos += struct.pack("<IQ", TENSOR_F32, len(data))
        data += numbers.tobytes()
        data += bytes(-len(data) % ALIGNED)
    begin = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(values)) + b"".join(values) + infos
    path.write_bytes(begin + bytes(-len(begin) % ALIGNED) + data)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
