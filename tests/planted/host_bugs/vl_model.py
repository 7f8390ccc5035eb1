"""Bugs of vision-language models: what other engines got wrong, and what positions can mix up."""

from __future__ import annotations

from bug import GOLDEN, Bug

VL_FORWARD = ["tests/models/test_vl_forward.py"]
VL_LOADING = ["tests/models/test_vl_loading.py"]
VL_CONFIG = ["tests/models/test_vl_config.py"]
POSITIONS = ["tests/models/test_media_positions.py"]
ARGUMENTS = ["tests/models/test_media_arguments.py"]
FEATURES = ["tests/runner/test_visual_features.py"]
QUERY_ROWS = ["tests/runner/test_query_rows.py"]

PLACES = "python/ernie_kernels/models/media_positions.py"
LAYERS = "python/ernie_kernels/models/layer_plan.py"
LAYOUT = "python/ernie_kernels/models/checkpoint_layout.py"
LOADER = "python/ernie_kernels/models/loader.py"
TOWER = "python/ernie_kernels/models/vision_tower.py"
ENCODER = "python/ernie_kernels/models/ernie_vl.py"
RESAMPLER = "python/ernie_kernels/models/resampler.py"
EXPERTS = "python/ernie_kernels/models/experts.py"
SPECS = "python/ernie_kernels/models/weight_specs.py"
ROPE = "python/ernie_kernels/models/rope_config.py"
MEDIA = "python/ernie_kernels/runner/media.py"
STEP = "python/ernie_kernels/runner/step_media.py"
BATCH = "python/ernie_kernels/runner/batch.py"
CHECKS = "python/ernie_kernels/media_arguments.py"

BUGS = [
    Bug(
        "vl model: text goes on behind a video as if it had one frame, by either rule",
        PLACES,
        "position += max(grid) if rule == BAIDU else max(rows, columns)",
        "position += max(rows, columns)",
        POSITIONS,
    ),
    Bug(
        "vl model: generated tokens go on behind the number of tokens",
        PLACES,
        "int(positions.max()) + 1 - len(types)",
        "0",
        POSITIONS,
    ),
    Bug(
        "vl model: patches row by row, not by blocks",
        PLACES,
        "np.tile(frame.reshape(2, -1), t)",
        "np.tile(frame.swapaxes(2, 3).reshape(2, -1), t)",
        POSITIONS,
    ),
    Bug(
        "vl model: patches of a video see its other frames",
        PLACES,
        "sizes = [np.full(t, h * w, np.int64) for t, h, w in grids]",
        "sizes = [np.full(1, t * h * w, np.int64) for t, h, w in grids]",
        POSITIONS,
    ),
    Bug(
        "vl model: the tokens around media go to the text experts",
        PLACES,
        "np.isin(token_ids, list(tokens.placeholders | tokens.around))",
        "np.isin(token_ids, list(tokens.placeholders))",
        POSITIONS,
    ),
    Bug(
        "vl model: experts of both banks of one width",
        SPECS,
        'width = (size, ("moe_intermediate_size",))',
        'width = (plan.intermediate_size, ("moe_intermediate_size",))',
        VL_LOADING,
    ),
    Bug(
        "vl model: a square router is read as text models store it",
        LOADER,
        "transposed = source.transposed or first.transposed",
        "transposed = source.transposed",
        VL_LOADING,
    ),
    Bug(
        "vl model: matrices of the tower are not turned in Paddle's files",
        LAYOUT,
        "return Source(stored, transposed=True)",
        "return Source(stored)",
        VL_LOADING,
    ),
    Bug(
        "vl model: the first layers with experts are those of the later bank",
        LAYERS,
        "values[start_key] = min(starts)",
        "values[start_key] = max(starts)",
        VL_CONFIG,
    ),
    Bug(
        "vl model: pairs of time from the first entry of the sections",
        ROPE,
        "counts = {section[2] for section in sections}",
        "counts = {section[0] for section in sections}",
        VL_CONFIG,
    ),
    Bug(
        "vl model: values of the tower's attention are its keys",
        TOWER,
        "by_head[:, 2 * heads :]",
        "by_head[:, heads : 2 * heads]",
        GOLDEN,
    ),
    Bug(
        "vl model: queries of the tower are not turned",
        TOWER,
        "ops.rope_2d(query, key, frames.table[rows])",
        "ops.rope_2d(query[:, :0], key, frames.table[rows])",
        GOLDEN,
    ),
    Bug(
        "vl model: a piece of rows of the tower's MLP is left out",
        TOWER,
        "range(0, len(hidden_states), MLP_ROWS)",
        "range(0, min(1, len(hidden_states)), MLP_ROWS)",
        ["tests/runner/test_tower_slices.py"],
    ),
    Bug(
        "vl model: quick_gelu in the resampler too",
        RESAMPLER,
        'activation="gelu"',
        'activation="quick_gelu"',
        GOLDEN,
    ),
    Bug(
        "vl model: the second piece of a video begins with its first frame again",
        ENCODER,
        "group.first_frame + frame, rows",
        "frame, rows",
        ["tests/runner/test_tower_slices.py"],
    ),
    Bug(
        "vl model: the vision bank has the router of the text",
        EXPERTS,
        "self.gates = [weights.router(each) for each in names]",
        "self.gates = [weights.router(names[0]) for _ in names]",
        GOLDEN,
    ),
    Bug(
        "vl model: rows of a chunk that begins within an image",
        STEP,
        "(chosen + (first - span.start))",
        "(chosen + first)",
        VL_FORWARD,
    ),
    Bug(
        "vl model: banks of the wanted rows are those of the first rows",
        BATCH,
        "banks = None if banks is None else banks[numbers]",
        "banks = None if banks is None else banks[: len(numbers)]",
        QUERY_ROWS,
    ),
    Bug(
        "vl model: another picture has the cached keys of the first",
        MEDIA,
        "digest.update(plan.items[index].key)",
        "digest.update(plan.items[index].key[:0])",
        FEATURES,
    ),
    Bug(
        "vl model: media left over are no error",
        CHECKS,
        "            if left:\n                raise InputError(",
        "            if left and not waiting:\n                raise InputError(",
        ARGUMENTS,
    ),
]
