"""Files of weights and folders of them."""

from __future__ import annotations

from input_limits.row import Row

SAFETENSORS = "test_safetensors.py::test_refuses"
FOLDER = "models/test_checkpoint_folder.py"
WEIGHTS = "models/test_weight_errors.py"
MOE_LOADING = "models/test_moe_loading.py"
VL_LOADING = "models/test_vl_loading.py"
NO_CONVERSION = "nothing is converted or written yet"

ROWS = {
    1: Row("file shorter than 8 bytes", (f"{SAFETENSORS}[row 1",)),
    2: Row("header longer than the file", (f"{SAFETENSORS}[row 2",)),
    3: Row(
        "header beyond the limit",
        (
            f"{SAFETENSORS}[row 3",
            "test_safetensors_memory.py::test_a_claimed_size_allocates_nothing",
            "test_safetensors.py::test_the_formats_own_cap_on_the_header_stays",
        ),
    ),
    4: Row(
        "header is no JSON",
        (
            f"{SAFETENSORS}[row 4",
            "peers/test_checkpoint_files.py::test_a10_nesting_does_not_recurse",
        ),
    ),
    5: Row(
        "duplicate tensor or field",
        (
            f"{SAFETENSORS}[row 5",
            "peers/test_checkpoint_files.py::test_a13_one_name_means_one_tensor",
        ),
    ),
    6: Row("unknown or missing field", (f"{SAFETENSORS}[row 6",)),
    7: Row(
        "unknown dtype",
        (
            f"{SAFETENSORS}[row 7",
            "test_safetensors.py::test_eight_bit_floats_are_read_as_bytes_and_smaller_ones_refused",
        ),
    ),
    8: Row("number that is no size", (f"{SAFETENSORS}[row 8",)),
    9: Row(
        "size that overflows",
        (
            f"{SAFETENSORS}[row 9",
            "peers/test_checkpoint_files.py::test_a01_a03_size_products_are_those_of_big_integers",
            "peers/test_checkpoint_files.py::test_a11_overflowing_shape",
        ),
    ),
    10: Row(
        "ranges overlap, leave gaps, lie outside",
        (
            f"{SAFETENSORS}[row 10",
            "peers/test_checkpoint_files.py::test_a02_sums_of_ranges_do_not_wrap",
        ),
    ),
    11: Row(
        "range does not fit the shape",
        (f"{SAFETENSORS}[row 11", "peers/test_checkpoint_files.py::test_a06_dtype_confusion"),
    ),
    12: Row("bytes after the last tensor", (f"{SAFETENSORS}[row 12",)),
    13: Row(
        "tensor of size zero",
        (f"{SAFETENSORS}[row 13", f"{WEIGHTS}::test_zero_size_tensors_fail_unless_expected"),
    ),
    14: Row(
        "names and number of tensors",
        (
            f"{SAFETENSORS}[row 14",
            "test_safetensors.py::test_limits_can_be_lowered",
            "peers/test_checkpoint_files.py::test_a12_number_of_tensors_is_capped",
        ),
    ),
    15: Row(
        "file changes while open",
        ("test_safetensors.py::test_row_15_file_changes_while_open",),
    ),
    16: Row("read error", ("test_safetensors.py::test_row_16_read_error",)),
    17: Row("shard missing", (f"{FOLDER}::test_row_17_missing_shard",)),
    18: Row(
        "index leaves the folder",
        (
            f"{FOLDER}::test_row_18_index_may_not_leave_the_folder",
            "peers/test_checkpoint_files.py::test_a14_index_stays_in_the_folder",
        ),
    ),
    19: Row(
        "index and shards disagree",
        (
            f"{FOLDER}::test_row_19_tensor_in_another_shard_than_the_index_says",
            f"{FOLDER}::test_row_19_tensor_in_two_shards",
            f"{FOLDER}::test_row_19_tensor_that_the_index_does_not_list",
            f"{FOLDER}::test_row_19_tensor_that_no_shard_holds",
        ),
    ),
    20: Row(
        "tensor missing or unexpected",
        (
            f"{WEIGHTS}::test_row_20_missing_tensors",
            f"{WEIGHTS}::test_row_20_unexpected_and_did_you_mean",
            f"{WEIGHTS}::test_row_20_message_stays_short",
            "models/test_forward.py::test_missing_head_is_an_error_unless_tied",
            f"{MOE_LOADING}::test_a_missing_router_or_bias_is_named",
            f"{MOE_LOADING}::test_a_missing_expert_is_named",
            f"{MOE_LOADING}::test_tensors_of_other_experts_are_refused",
            f"{VL_LOADING}::test_a_missing_tensor_is_named",
            f"{VL_LOADING}::test_a_tower_under_both_names_is_refused",
        ),
    ),
    21: Row(
        "wrong shape",
        (
            f"{WEIGHTS}::test_row_21_wrong_shape",
            f"{WEIGHTS}::test_row_21_wrong_shape_of_a_fused_tensor",
            f"{MOE_LOADING}::test_wrong_shapes",
            f"{VL_LOADING}::test_a_wrong_shape_is_told_with_its_keys",
        ),
    ),
    22: Row("wrong dtype", (f"{WEIGHTS}::test_row_22_wrong_dtype",)),
    23: Row(
        "weights that are not finite",
        (
            f"{WEIGHTS}::test_row_23_non_finite_weights",
            f"{WEIGHTS}::test_row_23_values_beyond_the_destinations_range",
        ),
        not_yet="scales: no quantised checkpoint loads yet",
    ),
    24: Row("2-bit code out of range", not_yet="no quantised checkpoint loads yet"),
    25: Row("half-converted folder", not_yet=NO_CONVERSION),
}
