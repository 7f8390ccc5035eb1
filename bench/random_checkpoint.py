"""Write a full-size ERNIE-4.5 checkpoint with seeded random weights, for benches.

python bench/random_checkpoint.py DIR                          # 0.3B, bfloat16: 722 MB
python bench/random_checkpoint.py DIR --model 21B --layers 8   # the first 8 layers of 21B-A3B: 11.7 GB
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tqdm import tqdm

CONFIG_0_3B = {
    "architectures": ["Ernie4_5ForCausalLM"],
    "model_type": "ernie4_5",
    "vocab_size": 103424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "use_bias": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIG_21B = CONFIG_0_3B | {
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "model_type": "ernie4_5_moe",
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "moe_num_experts": 64,
    "moe_k": 6,
    "moe_intermediate_size": 1536,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
    "moe_use_aux_free": True,
}
CONFIGS = {"0.3B": CONFIG_0_3B, "21B": CONFIG_21B}

# What stays float32 in a bfloat16 checkpoint.
FLOAT32 = ("mlp.gate.weight", "e_score_correction_bias")


def is_sparse(config: dict[str, Any], layer: int) -> bool:
    return "moe_num_experts" in config and layer >= config["moe_layer_start_index"]


def mlp_shapes(config: dict[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    """Tensors of one kind lie together, so that a reader sees all experts as one array."""
    hidden, name = config["hidden_size"], f"model.layers.{layer}.mlp"

    def dense(name: str, width: int) -> dict[str, tuple[int, ...]]:
        return {
            f"{name}.gate_proj.weight": (width, hidden),
            f"{name}.up_proj.weight": (width, hidden),
            f"{name}.down_proj.weight": (hidden, width),
        }

    if not is_sparse(config, layer):
        return dense(name, config["intermediate_size"])
    experts, width = config["moe_num_experts"], config["moe_intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.gate.weight": (experts, hidden),
        f"{name}.moe_statics.e_score_correction_bias": (1, experts),
    }
    for projection, shape in dense("", width).items():
        shapes |= {f"{name}.experts.{e}{projection}": shape for e in range(experts)}
    return shapes | dense(f"{name}.shared_experts", config["moe_num_shared_experts"] * width)


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden = config["hidden_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
            f"{layer}.self_attn.q_proj.weight": (query, hidden),
            f"{layer}.self_attn.k_proj.weight": (key, hidden),
            f"{layer}.self_attn.v_proj.weight": (key, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, query),
        } | mlp_shapes(config, i)
    return shapes


def random_tensor(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Scaled so that activations stay near 1; the bias decides a choice now and then."""
    if len(shape) == 1:
        return np.ones(shape, ml_dtypes.bfloat16)
    scale = 0.005 if name.endswith("bias") else shape[1] ** -0.5
    values = rng.standard_normal(shape, np.float32)
    values *= scale
    return values if name.endswith(FLOAT32) else values.astype(ml_dtypes.bfloat16)


def write_checkpoint(folder: Path, config: dict[str, Any] = CONFIG_0_3B, seed: int = 0) -> None:
    """One tensor in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    shapes = shapes_of(config)
    header, end = {}, 0
    for name, shape in shapes.items():
        dtype, itemsize = ("F32", 4) if name.endswith(FLOAT32) else ("BF16", 2)
        begin, end = end, end + itemsize * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tqdm(shapes.items(), desc="writing", unit="tensor"):
            file.write(random_tensor(rng, name, shape).tobytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=CONFIGS, default="0.3B")
    parser.add_argument("--layers", type=int, metavar="N", help="only the first N layers")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chosen = dict(CONFIGS[arguments.model])
    if arguments.layers is not None:
        chosen["num_hidden_layers"] = arguments.layers
    write_checkpoint(arguments.folder, chosen, arguments.seed)
