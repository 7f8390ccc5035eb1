"""A GGUF file of an ERNIE-4.5 checkpoint, for llama.cpp: what ``bench_model.py`` runs beside ours.

python bench/gguf_file.py CHECKPOINT FOLDER --types BF16 Q8_0     # needs gguf and llama-cpp-python

The weights are copied as bfloat16 by the ``gguf`` package; every other type is made from that file
by llama.cpp's own quantiser, the head and the embeddings included. The vocabulary has no words: the
benches speak in token ids.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import ml_dtypes
import numpy as np

ARCHITECTURE = "ernie4_5"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
NAMES_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def stored_tensors(path: Path) -> dict[str, np.ndarray]:
    """Views of the bfloat16 tensors of a safetensors file, read here and not by our loader."""
    data = np.memmap(path, np.uint8, mode="r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    tensors = {}
    for name, entry in json.loads(data[8:start].tobytes()).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise SystemExit(f"{path.name}: {name} is {entry['dtype']}, only BF16 is converted")
        begin, end = entry["data_offsets"]
        bytes_ = data[start + begin : start + end]
        tensors[name] = bytes_.view(ml_dtypes.bfloat16).reshape(entry["shape"])
    return tensors


def gguf_name(name: str) -> str:
    """llama.cpp's name of a checkpoint's tensor; KeyError if it has none."""
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        number, _, rest = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{number}.{NAMES_IN_LAYER[rest]}.weight"
    return f"{NAMES[stem]}.weight"


def write_bfloat16(checkpoint: Path, target: Path) -> None:
    """``rope`` pairs neighbours on both sides: rows of q and k keep their order."""
    import gguf

    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(target, ARCHITECTURE)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("none")
    for name, tensor in stored_tensors(checkpoint / "model.safetensors").items():
        if tensor.ndim == 1:  # llama.cpp wants norms in float32
            writer.add_tensor(gguf_name(name), tensor.astype(np.float32))
        else:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(gguf_name(name), tensor.view(np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_file(checkpoint: Path, folder: Path, kind: str) -> Path:
    """The file of one type, made if ``folder`` has none that is younger than the checkpoint.

    Args:
        checkpoint: holds ``config.json`` and ``model.safetensors`` (bfloat16, Hugging Face names).
        kind: ``BF16``, or a type that llama.cpp quantises to without a calibration file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{checkpoint.resolve().name}-{kind}.gguf"
    source = checkpoint / "model.safetensors"
    if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
        return target
    partial = target.with_suffix(".partial")
    if kind == "BF16":
        write_bfloat16(checkpoint, partial)
    else:
        from llama_peer import quantize

        quantize(gguf_file(checkpoint, folder, "BF16"), partial, kind)
    return partial.replace(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--types", nargs="+", default=["BF16"])
    arguments = parser.parse_args()
    for each in arguments.types:
        print(gguf_file(arguments.checkpoint, arguments.folder, each))
