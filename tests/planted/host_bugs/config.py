"""Bugs of configurations, and of what is planned from them."""

from __future__ import annotations

from bug import CONFIG, FIT, MEMORY_PLAN, Bug

LAYER_PLAN = "python/ernie_kernels/models/layer_plan.py"
PLAN = "python/ernie_kernels/models/memory_plan.py"
REPORT = "python/ernie_kernels/cli/fit_report.py"

BUGS = [
    Bug(
        "config: experts from the layer after the first on",
        LAYER_PLAN,
        "start <= layer <= last",
        "start < layer <= last",
        CONFIG,
    ),
    Bug(
        "config: -1 is the last layer but one",
        LAYER_PLAN,
        "last = num_layers - 1 if",
        "last = num_layers - 2 if",
        CONFIG,
    ),
    Bug(
        "config: intervals of layers counted from 0",
        LAYER_PLAN,
        "(layer + 1) % interval",
        "layer % interval",
        CONFIG,
    ),
    Bug(
        "config: layer types beside a layer rule are not compared with it",
        LAYER_PLAN,
        "if by_type is not None and by_type != by_rule:",
        "if by_type is None and by_type != by_rule and not by_rule:",
        CONFIG,
    ),
    Bug(
        "config: no shared experts are two, as transformers has it",
        LAYER_PLAN,
        '"moe_num_shared_experts", default=0',
        '"moe_num_shared_experts", default=2',
        CONFIG,
    ),
    Bug(
        "config: shared experts as wide as a dense layer",
        LAYER_PLAN,
        "experts.num_shared_experts * experts.moe_intermediate_size",
        'experts.num_shared_experts and reader.size("intermediate_size")',
        CONFIG,
    ),
    Bug(
        "config: one expert more may be chosen than there are",
        LAYER_PLAN,
        "experts.top_k > experts.num_experts",
        "experts.top_k > experts.num_experts + 1",
        CONFIG,
    ),
    Bug(
        "config: routing without a correction bias is taken for routing with one",
        LAYER_PLAN,
        'if not reader.boolean("moe_use_aux_free", True):',
        'if reader.boolean("moe_use_aux_free", True) is None:',
        CONFIG,
    ),
    Bug(
        "config: another name of a key overrules it",
        "python/ernie_kernels/models/config_reader.py",
        "if values.get(name) not in (None, value):",
        "if values.get(name) is values:",
        CONFIG,
    ),
    Bug(
        "memory plan: an untied head serves as embedding",
        "python/ernie_kernels/models/model_weights.py",
        "if not config.tie_word_embeddings:",
        "if config.vocab_size < 0:",
        MEMORY_PLAN,
    ),
    Bug(
        "memory plan: panels of 4 bits padded as those of 8",
        PLAN,
        "WINT8: 4, WINT4: 8}\n_PANEL",
        "WINT8: 4, WINT4: 4}\n_PANEL",
        MEMORY_PLAN,
    ),
    Bug(
        "memory plan: routers in the dtype of the weights",
        PLAN,
        '        return "float32"\n',
        "        return weight_dtype\n",
        MEMORY_PLAN,
    ),
    Bug(
        "memory plan: a token reads all experts",
        PLAN,
        "weight.active * nbytes(weight)",
        "weight.count * nbytes(weight)",
        MEMORY_PLAN,
    ),
    Bug(
        "memory plan: the prediction module's weights left out",
        PLAN,
        "(*weights, *mtp_weights) if with_mtp else weights",
        "weights",
        MEMORY_PLAN,
    ),
    Bug(
        "memory plan: the prediction module's layer of the cache left out",
        PLAN,
        "(config.num_hidden_layers + with_mtp)",
        "config.num_hidden_layers",
        MEMORY_PLAN,
    ),
    Bug(
        "memory plan: a load needs no room for the matrix that it is at",
        PLAN,
        " + largest + LOADING_BYTES",
        " + LOADING_BYTES",
        MEMORY_PLAN,
    ),
    Bug(
        "fit: loading to a GPU needs no host memory",
        REPORT,
        "if needed > place.memory or (host is not None and host_needed > host):",
        "if needed > place.memory:",
        FIT,
    ),
    Bug(
        "fit: the first way that fits at all is advised",
        REPORT,
        "            if tokens[way.name] >= self.enough:\n",
        "            if tokens[way.name]:\n",
        FIT,
    ),
    Bug(
        "fit: a GPU's cache may take all that is left",
        REPORT,
        "else (DEVICE_RESERVE + activations, DEVICE_SHARE)",
        "else (DEVICE_RESERVE + activations, 1.0)",
        FIT,
    ),
]
