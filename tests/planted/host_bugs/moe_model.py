"""Bugs of models with experts: what other engines got wrong, and what a loader can mix up."""

from __future__ import annotations

from bug import GOLDEN, INVARIANCE, Bug

MOE_FORWARD = ["tests/models/test_moe_forward.py"]
LOADING = ["tests/models/test_moe_loading.py"]
ISOLATION = ["tests/runner/test_isolation.py"]

ROUTE = "csrc/cpu/moe.cpp"
EXPERTS = "python/ernie_kernels/models/experts.py"
LAYERS = "python/ernie_kernels/models/layers.py"
WEIGHTS = "python/ernie_kernels/models/weights.py"
QUANTIZATION = "python/ernie_kernels/models/quantization.py"
LAYOUT = "python/ernie_kernels/models/checkpoint_layout.py"
LOADER = "python/ernie_kernels/models/loader.py"
PLAN = "python/ernie_kernels/models/layer_plan.py"
ENGINE = "python/ernie_kernels/runner/engine.py"
RUNNER = "python/ernie_kernels/runner/model_runner.py"

BUGS = [
    Bug(
        "moe model: dense matrices rounded as the experts are to be, and these as those",
        QUANTIZATION,
        "cls(asked.get(DENSE_KEY), asked.get(EXPERTS_KEY))",
        "cls(asked.get(EXPERTS_KEY), asked.get(DENSE_KEY))",
        LOADING,
    ),
    Bug(
        "moe model: int8 activations of experts where those of dense layers are asked for",
        EXPERTS,
        "weights.quantization.experts == W8A8",
        "weights.quantization.dense == W8A8",
        LOADING,
    ),
    Bug(
        "moe model: the bias does not choose",
        ROUTE,
        "sample_key(scores[e],",
        "sample_key(p[e],",
        GOLDEN,
    ),
    Bug(
        "moe model: biased scores weigh",
        ROUTE,
        "weights[j] = p[e];",
        "weights[j] = scores[e];",
        GOLDEN,
    ),
    Bug(
        "moe model: weights not renormalised",
        ROUTE,
        "weights[j] = weights[j] / divisor;",
        "weights[j] = weights[j] / std::max(divisor, 1.f);",
        GOLDEN,
    ),
    Bug(
        "moe model: softmax over the chosen alone, so that logits meet the bias",
        ROUTE,
        "sample_key(scores[e],",
        "sample_key(logits[e] + a.correction_bias.ptr<float>()[e],",
        GOLDEN,
    ),
    Bug(
        "moe model: the bias read and left at zero",
        WEIGHTS,
        'return self._vector("float32", name).reshape(-1)',
        "return from_numpy(np.zeros(self._config.num_experts, np.float32), self._device)",
        GOLDEN,
    ),
    Bug(
        "moe model: a router in bfloat16",
        WEIGHTS,
        'self.checkpoint.tensor(name, dtype="float32")',
        "self.checkpoint.tensor(name, dtype=self._weight_dtype)",
        MOE_FORWARD,
    ),
    Bug(
        "moe model: experts in reverse",
        WEIGHTS,
        "ops.expert_weights_set(experts, index, matrix)",
        "ops.expert_weights_set(experts, count - 1 - index, matrix)",
        GOLDEN,
    ),
    Bug(
        "moe model: every expert is the first",
        WEIGHTS,
        "self.checkpoint.read_into(matrix, *of_expert)",
        "self.checkpoint.read_into(matrix, *names[0])",
        GOLDEN,
    ),
    Bug(
        "moe model: experts of 8 bits with wint4",
        QUANTIZATION,
        "WINT4: (WINT8, WINT4),",
        "WINT4: (WINT8, WINT8),",
        LOADING,
    ),
    Bug(
        "moe model: up before gate",
        EXPERTS,
        '"gate_proj", "up_proj")',
        '"up_proj", "gate_proj")',
        GOLDEN,
    ),
    Bug(
        "moe model: shared experts left out",
        EXPERTS,
        "shared=shared,",
        "shared=None,",
        GOLDEN,
    ),
    Bug(
        "moe model: shared experts averaged",
        EXPERTS,
        "            shared = self.shared_experts(hidden_states, buffers.shared, out=buffers.out)\n",
        "            shared = self.shared_experts(hidden_states, buffers.shared, out=buffers.out)\n"
        "            shared.numpy()[...] = 0.5 * shared.numpy()\n",
        GOLDEN,
    ),
    Bug(
        "moe model: one expert fewer than asked for",
        EXPERTS,
        "self.top_k = plan.top_k",
        "self.top_k = plan.top_k - 1",
        GOLDEN,
    ),
    Bug(
        "moe model: norm_min of the config not heeded",
        EXPERTS,
        "norm_min=self.norm_min,",
        "norm_min=1e-12,",
        MOE_FORWARD,
    ),
    Bug(
        "moe model: int8 activations do not reach the experts",
        EXPERTS,
        "int8_activations=self.int8_activations,",
        "int8_activations=False,",
        LOADING,
    ),
    Bug(
        "moe model: nobody hears of a token without experts",
        EXPERTS,
        "flags=flags,",
        "flags=None,",
        ISOLATION,
    ),
    Bug(
        "moe model: flags of other rows in the last layer",
        LAYERS,
        "flags = batch.flags if queries is batch.queries else None",
        "flags = batch.flags",
        MOE_FORWARD,
    ),
    Bug(
        "moe model: the first sequence ends for another's token",
        ENGINE,
        "            sequence = scheduled[index][0]\n            is_draft",
        "            sequence = scheduled[0][0]\n            is_draft",
        ISOLATION,
    ),
    Bug(
        "moe model: positions of flagged tokens counted from their span",
        RUNNER,
        "spans[index].stop - int(stops[index] - row)",
        "len(spans[index].token_ids) - int(stops[index] - row)",
        ISOLATION,
    ),
    Bug(
        "moe model: layers with experts begin one late",
        PLAN,
        "start <= layer <= last for",
        "start < layer <= last for",
        GOLDEN,
    ),
    Bug(
        "moe model: an end of -1 taken as a number",
        PLAN,
        "last = num_layers - 1 if end == -1 else end",
        "last = end",
        GOLDEN,
    ),
    Bug(
        "moe model: a square router turned",
        LOADER,
        "if first.either_way and expected != tensor.shape == expected[::-1]:",
        "if first.either_way and tensor.shape == expected[::-1]:",
        LOADING,
    ),
    Bug(
        "moe model: a router one way only",
        LOADER,
        "if first.either_way and expected != tensor.shape == expected[::-1]:",
        "if False:",
        LOADING,
    ),
    Bug(
        "moe model: up before gate where experts are one tensor",
        LAYOUT,
        '"gate": ("gate_up_proj", 2, 0),',
        '"gate": ("gate_up_proj", 2, 2),',
        MOE_FORWARD,
    ),
    Bug(
        "moe model: tensors of one expert too many ignored",
        LOADER,
        "unexpected = [n for n in others if MTP not in n]",
        'unexpected = [n for n in others if MTP not in n and ".experts." not in n]',
        LOADING,
    ),
    Bug(
        "moe model: rows of an earlier step in the router's input",
        EXPERTS,
        "x = ops.embedding(buffers.row_numbers, x, out=buffers.router_input)",
        "x = buffers.router_input",
        INVARIANCE,
    ),
]
