"""A GGUF file of an ERNIE-4.5 checkpoint, for llama.cpp: what ``bench_model.py`` runs beside ours.

python bench/gguf_file.py CHECKPOINT FOLDER --types BF16 Q8_0     # needs gguf and llama-cpp-python

The weights are copied as bfloat16 by the ``gguf`` package; every other type is made from that file
by llama.cpp's own quantiser, the head and the embeddings included. The vocabulary has no words: the
benches speak in token ids.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np

ARCHITECTURES = {"ernie4_5": "ernie4_5", "ernie4_5_moe": "ernie4_5-moe"}
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
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
NAMES_OF_EXPERTS = {
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
}
EXPERT = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(\w+)\.weight")
DTYPES = {"BF16": ml_dtypes.bfloat16, "F32": np.float32}


def stored_tensors(path: Path) -> dict[str, np.ndarray]:
    """Views of a safetensors file's tensors, read here and not by our loader.

    The experts of a layer are one array for each of their matrices: ``experts.gate_proj``, ...
    """
    data = np.memmap(path, np.uint8, mode="r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    tensors = {}
    for name, entry in json.loads(data[8:start].tobytes()).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise SystemExit(f"{path.name}: {name} is {entry['dtype']}, not one of {list(DTYPES)}")
        begin, end = entry["data_offsets"]
        bytes_ = data[start + begin : start + end]
        tensors[name] = bytes_.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def with_experts_joined(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``[num_experts, out, in]`` under ``blk.N.ffn_*_exps.weight``; the other names as they were."""
    joined: dict[str, np.ndarray] = {}
    experts: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in tensors.items():
        if match := EXPERT.fullmatch(name):
            layer, expert, matrix = match.groups()
            target = f"blk.{layer}.{NAMES_OF_EXPERTS[matrix]}.weight"
            experts.setdefault(target, {})[int(expert)] = tensor
        else:
            joined[name] = tensor
    for target, members in experts.items():
        joined[target] = stacked([members[e] for e in range(len(members))])
    return joined


def stacked(matrices: list[np.ndarray]) -> np.ndarray:
    """One array of matrices of one shape: a view where they follow each other in memory."""
    first, nbytes = matrices[0], matrices[0].nbytes
    start = first.ctypes.data
    if any(m.ctypes.data != start + i * nbytes for i, m in enumerate(matrices)):
        return np.stack(matrices)
    return np.lib.stride_tricks.as_strided(
        first, (len(matrices), *first.shape), (nbytes, *first.strides), writeable=False
    )


def gguf_name(name: str) -> str:
    """llama.cpp's name of a checkpoint's tensor; KeyError if it has none."""
    if name.startswith("blk."):
        return name
    if name.endswith(".mlp.moe_statics.e_score_correction_bias"):
        return f"blk.{name.split('.')[2]}.exp_probs_b.bias"
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        number, _, rest = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{number}.{NAMES_IN_LAYER[rest]}.weight"
    return f"{NAMES[stem]}.weight"


def write_bfloat16(checkpoint: Path, target: Path) -> None:
    """``rope`` pairs neighbours on both sides: rows of q and k keep their order."""
    import gguf

    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(target, ARCHITECTURES[config["model_type"]])
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
    if "moe_num_experts" in config:
        width, shared = config["moe_intermediate_size"], config["moe_num_shared_experts"]
        writer.add_expert_count(config["moe_num_experts"])
        writer.add_expert_used_count(config["moe_k"])
        writer.add_expert_feed_forward_length(width)
        writer.add_expert_shared_count(shared)
        writer.add_expert_shared_feed_forward_length(shared * width)
        writer.add_leading_dense_block_count(config["moe_layer_start_index"])
        writer.add_interleave_moe_layer_step(config["moe_layer_interval"])
    tensors = stored_tensors(checkpoint / "model.safetensors")
    for name, tensor in with_experts_joined(tensors).items():
        if tensor.ndim == 1 or tensor.dtype == np.float32:  # llama.cpp wants norms in float32
            flat = tensor.reshape(-1) if name.endswith("bias") else tensor
            writer.add_tensor(gguf_name(name), flat.astype(np.float32))
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
