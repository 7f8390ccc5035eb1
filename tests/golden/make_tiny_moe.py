"""Makes tiny_moe.safetensors: an ERNIE-4.5 with experts, and transformers' logits for it.

    python tests/golden/make_tiny_moe.py

One dense layer, then layers with experts and shared experts. The file holds the weights (float32,
under their checkpoint names), ``golden.ids`` and ``golden.logits``; its metadata the configuration,
the seed and the versions.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import safetensors.torch
import torch
import transformers

SEED = 4521
CONFIG = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "moe_num_experts": 6,
    "moe_k": 2,
    "moe_intermediate_size": 12,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
}
NUM_TOKENS = 27


def main() -> None:
    torch.manual_seed(SEED)
    config = transformers.Ernie4_5_MoeConfig(**CONFIG)
    model = transformers.Ernie4_5_MoeForCausalLM(config).float().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith("e_score_correction_bias"):
            # As large as the probabilities: it changes many choices.
            torch.nn.init.uniform_(parameter, -1 / 6, 1 / 6)
        else:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    ids = torch.randint(0, CONFIG["vocab_size"], (1, NUM_TOKENS))
    with torch.no_grad():
        logits = model(ids).logits
    with tempfile.TemporaryDirectory() as folder:  # names and shapes as transformers writes them
        model.save_pretrained(folder)
        tensors = safetensors.torch.load_file(Path(folder) / "model.safetensors")
    tensors |= {"golden.ids": ids[0], "golden.logits": logits[0].contiguous()}
    metadata = {
        "command": "python tests/golden/make_tiny_moe.py",
        "seed": str(SEED),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "config": json.dumps(
            {
                "architectures": ["Ernie4_5_MoeForCausalLM"],
                "model_type": "ernie4_5_moe",
                "rope_theta": config.rope_parameters["rope_theta"],
                **CONFIG,
            }
        ),
    }
    safetensors.torch.save_file(tensors, Path(__file__).parent / "tiny_moe.safetensors", metadata)


if __name__ == "__main__":
    main()
