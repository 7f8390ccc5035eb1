"""Makes tiny_vl.safetensors: an ERNIE-4.5-VL, and transformers' logits for two images, a video and text.

    python tests/golden/make_tiny_vl.py

The file holds the weights (float32, as transformers saves them), the prompt and its patches, and the
logits by both rules of positions; its metadata the configuration, the seed and the versions. Patches
are stored as the grey levels that they are made of: ``[num_patches, 588]``, channel, y, x.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import safetensors.torch
import torch
import transformers

SEED = 4522
TEXT = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_intermediate_size": [12, 8],
    "moe_num_shared_experts": 1,
    "mlp_layer_types": ["dense", "sparse"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "mrope_section": [1, 1, 2]},
}
VISION = {"depth": 2, "hidden_size": 4, "num_heads": 1, "intermediate_size": 12}
IDS = {
    "image_token_id": 50,
    "video_token_id": 51,
    "image_start_token_id": 52,
    "image_end_token_id": 53,
    "video_start_token_id": 54,
    "video_end_token_id": 55,
}
# Of the video more frames than rows and columns, so that the rules of positions part behind it.
MEDIA = [(1, (1, 2, 4)), (2, (4, 2, 2)), (1, (1, 2, 2))]
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64)


def make_model() -> transformers.Ernie4_5_VLMoeForConditionalGeneration:
    config = transformers.Ernie4_5_VLMoeConfig(text_config=TEXT, vision_config=VISION, **IDS)
    config._attn_implementation = "eager"
    model = transformers.Ernie4_5_VLMoeForConditionalGeneration(config).float().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("e_score_correction_bias"):
            torch.nn.init.uniform_(parameter, -1 / 4, 1 / 4)  # as large as the probabilities
        elif parameter.ndim == 1 and name.endswith("weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            torch.nn.init.normal_(parameter, std=scale)
    return model


def make_prompt() -> dict[str, torch.Tensor]:
    """Ids, types for positions, types for experts, and the place of every token by Baidu's rule."""
    ids, types, banks = [], [], []
    positions: list[torch.Tensor] = []
    at = 0

    def text(tokens: list[int], bank: int) -> None:
        nonlocal at
        ids.extend(tokens)
        types.extend([0] * len(tokens))
        banks.extend([bank] * len(tokens))
        positions.append((torch.arange(len(tokens)) + at).expand(3, -1))
        at += len(tokens)

    for kind, (t, h, w) in MEDIA:
        text(torch.randint(0, 50, (3,)).tolist(), 0)
        name = {1: "image", 2: "video"}[kind]
        text([IDS[f"{name}_start_token_id"]], kind)
        frames = (1 if kind == 1 else t // 2, h // 2, w // 2)
        count = frames[0] * frames[1] * frames[2]
        ids.extend([IDS[f"{name}_token_id"]] * count)
        types.extend([kind] * count)
        banks.extend([kind] * count)
        axes = [torch.arange(size) + at for size in frames]
        positions.append(torch.stack(torch.meshgrid(*axes, indexing="ij")).reshape(3, -1))
        at += max(frames)
        text([IDS[f"{name}_end_token_id"]], kind)
    text(torch.randint(0, 50, (3,)).tolist(), 0)
    prompt = {"ids": torch.tensor(ids), "types": torch.tensor(types), "banks": torch.tensor(banks)}
    return prompt | {"baidu_positions": torch.cat(positions, dim=1)}


def main() -> None:
    torch.manual_seed(SEED)
    model, prompt = make_model(), make_prompt()
    tensors = {f"golden.{name}": value for name, value in prompt.items()}
    arguments = {
        "mm_token_type_ids": prompt["types"][None],
        "moe_mm_token_type_ids": prompt["banks"][None],
    }
    for kind, name, patches in ((1, "image", "pixel_values"), (2, "video", "pixel_values_videos")):
        grids = torch.tensor([grid for each, grid in MEDIA if each == kind])
        levels = torch.randint(0, 256, (int(grids.prod(-1).sum()), 588), dtype=torch.uint8)
        pixels = levels.double().reshape(-1, 3, 196) / 255
        pixels = (pixels - MEAN[:, None]) / STD[:, None]
        arguments[patches] = pixels.reshape(-1, 588).float()
        arguments[f"{name}_grid_thw"] = grids
        tensors |= {f"golden.{name}_levels": levels, f"golden.{name}_grid_thw": grids}
    with torch.no_grad():
        ids = prompt["ids"][None]
        theirs = model(ids, **arguments).logits[0]
        baidu = model(ids, **arguments, position_ids=prompt["baidu_positions"][:, None]).logits[0]
        text = model(ids[:, :3]).logits[0]
    tensors |= {"golden.logits_transformers": theirs.contiguous()}
    tensors |= {"golden.logits_baidu": baidu.contiguous(), "golden.logits_text": text.contiguous()}
    with tempfile.TemporaryDirectory() as folder:  # names and shapes as transformers writes them
        model.save_pretrained(folder)
        tensors |= safetensors.torch.load_file(Path(folder) / "model.safetensors")
        config = json.loads((Path(folder) / "config.json").read_text())
    metadata = {
        "command": "python tests/golden/make_tiny_vl.py",
        "seed": str(SEED),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "config": json.dumps(config),
    }
    safetensors.torch.save_file(tensors, Path(__file__).parent / "tiny_vl.safetensors", metadata)


if __name__ == "__main__":
    main()
