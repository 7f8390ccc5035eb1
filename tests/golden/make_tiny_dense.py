"""Makes tiny_dense.safetensors: a dense ERNIE-4.5 with transformers' logits for it.

    python tests/golden/make_tiny_dense.py

The file holds the weights (float32, under their checkpoint names), ``golden.ids`` and
``golden.logits``; its metadata the configuration, the seed and the versions.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch
import transformers

SEED = 4505
CONFIG = {
    "vocab_size": 67,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
NUM_TOKENS = 21


def main() -> None:
    torch.manual_seed(SEED)
    config = transformers.Ernie4_5Config(**CONFIG)
    model = transformers.Ernie4_5ForCausalLM(config).float().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    ids = torch.randint(0, CONFIG["vocab_size"], (1, NUM_TOKENS))
    with torch.no_grad():
        logits = model(ids).logits
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    tensors |= {"golden.ids": ids[0], "golden.logits": logits[0].contiguous()}
    metadata = {
        "command": "python tests/golden/make_tiny_dense.py",
        "seed": str(SEED),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "config": json.dumps(
            {
                "architectures": ["Ernie4_5ForCausalLM"],
                "model_type": "ernie4_5",
                "rope_theta": config.rope_parameters["rope_theta"],
                **CONFIG,
            }
        ),
    }
    safetensors.torch.save_file(tensors, Path(__file__).parent / "tiny_dense.safetensors", metadata)


if __name__ == "__main__":
    main()
