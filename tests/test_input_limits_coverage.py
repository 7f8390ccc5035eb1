"""Which test shows what each kind of bad input gets, and what is not there yet.

A test is named ``file::function``; ``file::function[row 5`` means those of its cases whose id
begins so. The test below looks them up, so that a test cannot be renamed or removed unnoticed.
"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

SAFETENSORS = "test_safetensors.py::test_refuses"
FOLDER = "models/test_checkpoint_folder.py"
WEIGHTS = "models/test_weight_errors.py"
CONFIG = "models/test_config.py"
MOE_CONFIG = "models/test_moe_config.py"
MEDIA_ARGUMENTS = "models/test_media_arguments.py"
MEDIA_POSITIONS = "models/test_media_positions.py"
VL_CONFIG = "models/test_vl_config.py"
MOE_LOADING = "models/test_moe_loading.py"
TOKENIZER = "test_tokenizer.py"
MALFORMED_TOKENIZER = "test_malformed_tokenizers.py"
TEMPLATE = "test_chat_template.py"
TEMPLATE_LIMITS = "test_chat_template_limits.py"
LLM = "test_llm.py"
GENERATE = "test_llm.py::test_generate_refuses_and_nothing_changes"
FORWARD = "test_llm.py::test_forward_refuses"
PARAMS = "runner/test_sampling_params.py::test_params_name_field_value_and_range"
ARGUMENTS = "ops/test_argument_errors.py"
IMAGES = "vision/test_images.py"
IMAGE_LIMITS = "vision/test_image_limits.py"
PROCESSOR = "vision/test_processor.py"
VIDEOS = "vision/test_videos.py"
NO_CONVERSION = "nothing is converted or written yet"


@dataclass(frozen=True)
class Row:
    """What goes wrong, the tests of it, and what cannot go wrong so far."""

    what: str
    tests: tuple[str, ...] = ()
    not_yet: str = ""


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
        ),
    ),
    21: Row(
        "wrong shape",
        (
            f"{WEIGHTS}::test_row_21_wrong_shape",
            f"{WEIGHTS}::test_row_21_wrong_shape_of_a_fused_tensor",
            f"{MOE_LOADING}::test_wrong_shapes",
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
    26: Row(
        "config: key missing or of the wrong type",
        (
            f"{CONFIG}::test_row_26_missing_key",
            f"{CONFIG}::test_row_26_size_of_the_wrong_type",
            f"{CONFIG}::test_row_26_wrong_type",
            f"{CONFIG}::test_row_26_malformed_file",
            f"{CONFIG}::test_row_26_missing_file",
            f"{VL_CONFIG}::test_row_26_missing_key_of_the_tower",
            f"{VL_CONFIG}::test_row_26_wrong_type",
        ),
    ),
    27: Row(
        "config: dimension out of range",
        (
            f"{CONFIG}::test_row_27_dimension_out_of_range",
            f"{CONFIG}::test_row_27_dimension_one_is_never_a_crash",
            f"{VL_CONFIG}::test_row_27_dimension_out_of_range",
            f"{VL_CONFIG}::test_row_27_width_out_of_range",
        ),
    ),
    28: Row(
        "config: contradiction",
        (
            f"{CONFIG}::test_row_28_contradiction",
            f"{MOE_CONFIG}::test_row_28_contradiction",
            f"{VL_CONFIG}::test_row_28_contradiction",
            f"{VL_CONFIG}::test_row_28_token_ids_beyond_the_vocabulary",
        ),
    ),
    29: Row(
        "config: number of experts",
        (
            f"{MOE_CONFIG}::test_row_29_zero",
            f"{MOE_CONFIG}::test_row_29_more_choices_than_experts",
            f"{MOE_CONFIG}::test_row_29_groups",
        ),
    ),
    30: Row(
        "config: unsupported value",
        (
            f"{CONFIG}::test_row_30_unsupported_value",
            f"{MOE_CONFIG}::test_row_30_unsupported_value",
            f"{VL_CONFIG}::test_row_30_unsupported_value",
        ),
    ),
    31: Row(
        "config: number that is not usable",
        (
            f"{CONFIG}::test_row_31_number_not_usable",
            f"{CONFIG}::test_row_31_nested_theta",
            f"{VL_CONFIG}::test_row_31_numbers_of_the_tower",
        ),
    ),
    32: Row(
        "tokenizer malformed",
        (
            f"{MALFORMED_TOKENIZER}::test_row_32_malformed_sentencepiece_model",
            f"{MALFORMED_TOKENIZER}::test_row_32_more_pieces_than_vocab_size",
            f"{MALFORMED_TOKENIZER}::test_row_32_contradictory_side_files",
            f"{MALFORMED_TOKENIZER}::test_row_32_unsupported_tokenizer_json",
            f"{MALFORMED_TOKENIZER}::test_damaged_files_give_config_errors_only",
        ),
    ),
    33: Row(
        "chat template over a limit or forbidden",
        (
            f"{TEMPLATE}::test_row_33_source_of_the_wrong_type",
            f"{TEMPLATE_LIMITS}::test_row_33_refused_at_load",
            f"{TEMPLATE_LIMITS}::test_row_33_over_a_limit",
            f"{TEMPLATE_LIMITS}::test_row_33_out_of_time",
            f"{TEMPLATE_LIMITS}::test_row_33_forbidden_or_failing_at_render",
            f"{TEMPLATE_LIMITS}::test_random_templates_give_our_errors_only",
        ),
    ),
    34: Row("no tokens", (GENERATE, FORWARD, "test_cli.py::test_empty_prompt")),
    35: Row(
        "longer than the model",
        (
            GENERATE,
            FORWARD,
            f"{LLM}::test_chat_refuses",
            "test_cli.py::test_chat_goes_on_after_a_message_that_is_too_long",
        ),
    ),
    36: Row(
        "token id out of range",
        (
            GENERATE,
            FORWARD,
            PARAMS,
            f"{CONFIG}::test_row_36_token_id_out_of_range",
            f"{CONFIG}::test_row_36_token_id_of_generation_config",
            f"{TOKENIZER}::test_row_36_id_out_of_range",
        ),
        not_yet="there are no bad words and no logit bias",
    ),
    37: Row(
        "text that is no UTF-8",
        (GENERATE, PARAMS, f"{TOKENIZER}::test_row_37_lone_surrogate"),
    ),
    38: Row(
        "special tokens typed by a user",
        (
            f"{TOKENIZER}::test_row_38_user_text_never_yields_control_ids",
            f"{TOKENIZER}::test_row_38_user_text_never_yields_control_ids_with_tokenizer_json",
            f"{TOKENIZER}::test_typed_placeholder_is_text",
            f"{TEMPLATE}::test_row_38_only_the_template_makes_control_tokens",
        ),
    ),
    39: Row(
        "placeholders without media",
        (
            f"{MEDIA_POSITIONS}::test_row_39_types_that_do_not_follow_the_grids",
            f"{MEDIA_ARGUMENTS}::test_row_39_types_of_tokens",
            f"{MEDIA_ARGUMENTS}::test_row_39_placeholders_are_not_as_many_as_features",
            f"{MEDIA_ARGUMENTS}::test_row_39_two_images_with_other_text_between",
        ),
        not_yet="requests to generate and to chat: they take no pictures or videos",
    ),
    40: Row(
        "picture of an unknown format",
        (
            f"{IMAGES}::test_row_40_other_formats",
            f"{IMAGES}::test_row_40_truncated_files",
            f"{IMAGES}::test_row_40_a_gif_is_a_video",
            f"{IMAGES}::test_row_40_sources_that_hold_no_picture",
        ),
    ),
    41: Row(
        "picture beyond the limits",
        (
            f"{IMAGE_LIMITS}::test_row_41_claims_beyond_the_limits",
            f"{IMAGE_LIMITS}::test_row_41_limits_are_inclusive",
            f"{IMAGE_LIMITS}::test_row_41_bytes_are_counted_before_they_are_read",
            f"{IMAGE_LIMITS}::test_row_41_scans_of_a_jpeg",
            f"{IMAGE_LIMITS}::test_row_41_segments_of_a_jpeg",
            f"{IMAGE_LIMITS}::test_row_41_chunks_of_a_png",
            f"{IMAGE_LIMITS}::test_row_41_a_bomb_costs_little",
            f"{IMAGE_LIMITS}::test_row_41_jpeg_fill_bytes_cost_little",
        ),
        not_yet="images of one request are not counted: no request takes any",
    ),
    42: Row(
        "picture without extent",
        (
            f"{IMAGE_LIMITS}::test_row_42_claims_of_nothing",
            f"{IMAGES}::test_row_42_arrays_without_extent",
            "vision/test_resize.py::test_row_42_extreme_aspects",
            "vision/test_resize.py::test_row_42_no_extent",
        ),
    ),
    43: Row(
        "array that is no picture",
        (
            f"{IMAGES}::test_row_43_strided_arrays_are_copied",
            f"{IMAGES}::test_row_43_arrays_that_are_no_pictures",
            f"{IMAGES}::test_row_43_other_types",
            f"{PROCESSOR}::test_row_43_patches_of_another_shape",
            f"{MEDIA_ARGUMENTS}::test_row_43_arrays",
        ),
    ),
    44: Row(
        "pixels that are not finite",
        (
            f"{PROCESSOR}::test_row_44_values_that_are_not_finite",
            f"{MEDIA_ARGUMENTS}::test_row_44_values_that_are_not_finite",
        ),
        not_yet="embeddings: no request takes any",
    ),
    45: Row(
        "video beyond the limits",
        (
            f"{VIDEOS}::test_row_45_no_frames",
            f"{VIDEOS}::test_row_45_what_is_no_video",
            f"{VIDEOS}::test_row_45_rates_that_are_none",
            f"{VIDEOS}::test_row_45_frames_of_several_sizes",
            f"{VIDEOS}::test_row_45_pixels_of_all_frames",
            f"{VIDEOS}::test_row_45_number_of_frames_and_seconds",
            f"{VIDEOS}::test_row_45_truncated_gifs",
            f"{VIDEOS}::test_row_45_a_gif_of_too_many_frames",
            f"{VIDEOS}::test_row_45_a_gif_of_empty_blocks",
            f"{VIDEOS}::test_row_45_a_gif_frame_beyond_its_canvas",
            f"{VIDEOS}::test_row_45_truncated_files",
            f"{VIDEOS}::test_row_45_a_file_of_sound",
            f"{VIDEOS}::test_row_45_size_and_number_are_known_before_decoding",
            f"{VIDEOS}::test_row_45_memory_of_the_decoder",
            f"{VIDEOS}::test_row_45_a_decoder_that_hangs_is_killed",
            f"{VIDEOS}::test_row_45_a_decoder_that_dies_or_lies",
        ),
    ),
    46: Row(
        "sampling parameters",
        (
            PARAMS,
            f"{LLM}::test_chat_names_the_wrong_argument",
            "test_cli.py::test_errors_are_one_line",
            "ops/test_sampling.py::test_sample_refuses_a_value_out_of_range",
            "ops/test_sampling.py::test_penalties_refuse_wrong_values_and_write_nothing",
        ),
    ),
    47: Row(
        "nothing to do",
        (
            f"{LLM}::test_empty_batch",
            "ops/test_activation.py::test_silu_and_mul_of_nothing_is_empty",
            "ops/test_attention.py::test_empty_batch",
            "ops/test_varlen_attention.py::test_empty_batch",
            "ops/test_embedding.py::test_embedding_of_no_tokens_is_empty",
            "ops/test_gemm.py::test_empty_extents",
            "ops/test_kv_cache.py::test_write_of_nothing_changes_nothing",
            "ops/test_moe.py::test_no_tokens_have_no_experts",
            "ops/test_norm.py::test_rms_norm_of_no_tokens_is_empty",
            "ops/test_rope.py::test_rope_of_nothing",
            "ops/test_sampling.py::test_sample_of_no_rows_is_empty",
            "ops/test_wint8.py::test_empty_extents",
        ),
    ),
    48: Row(
        "expert without tokens",
        (
            "ops/test_moe.py::test_sort_is_stable",
            "ops/test_moe.py::test_dispatch_copies_rows_in_expert_order",
            "ops/test_grouped_gemm.py::test_empty_extents",
            "ops/test_grouped_gemm.py::test_most_experts_that_there_may_be",
            "ops/test_fused_moe.py::test_all_tokens_at_one_expert_and_every_expert_for_each",
            "ops/test_expert_banks.py::test_what_a_bank_without_tokens_holds_does_not_matter",
            "models/test_moe_forward.py::test_float32_equals_float64",
        ),
    ),
    49: Row(
        "logits that are not finite",
        (
            "test_generate.py::test_a_request_that_is_not_finite_ends_alone",
            "runner/test_isolation.py::test_others_do_not_notice",
            "ops/test_sampling.py::test_a_row_without_a_distribution_gets_minus_one",
            "ops/test_moe_route.py::test_a_row_that_is_not_finite_is_flagged_and_no_other_changes",
            "ops/test_moe_route.py::test_a_bias_that_is_not_finite_flags_all_rows",
            "ops/test_moe_route_banks.py::test_only_the_own_bank_must_be_finite",
            "runner/test_isolation.py::test_no_expert_can_be_chosen_for_the_token",
            "runner/test_isolation.py::test_a_token_that_breaks_a_router_is_flagged",
        ),
    ),
    50: Row(
        "op: wrong tensor",
        (
            f"{ARGUMENTS}::test_a_wrong_tensor_is_an_argument_error",
            f"{ARGUMENTS}::test_what_is_no_tensor_is_a_type_error",
            f"{ARGUMENTS}::test_errors_are_the_same_when_out_is_allocated",
            "ops/test_attention.py::test_wrong_arguments_are_named",
            "ops/test_varlen_attention.py::test_wrong_arguments_are_named",
            "ops/test_gemm.py::test_wrong_arguments_are_named",
            "ops/test_gemm.py::test_packed_widths_are_checked",
            "ops/test_wint8.py::test_wrong_arguments_are_named",
            "ops/test_wint8.py::test_packed_widths_are_checked",
        ),
    ),
    51: Row(
        "op: id out of range",
        (
            "ops/test_attention.py::test_wrong_metadata_is_named",
            "ops/test_varlen_attention.py::test_wrong_metadata_is_named",
            "ops/test_embedding.py::test_embedding_refuses_an_id_out_of_range_and_writes_nothing",
            "ops/test_kv_cache.py::test_write_refuses_a_slot_out_of_range_and_writes_nothing",
            "ops/test_moe.py::test_an_id_out_of_range_is_refused_and_nothing_written",
            "ops/test_moe.py::test_a_gpu_takes_the_nearest_expert_for_an_id_out_of_range",
            "ops/test_moe.py::test_combine_refuses_a_place_out_of_range_and_writes_nothing",
            "ops/test_rope.py::test_rope_refuses_a_negative_position_and_rotates_nothing",
            "ops/test_sampling.py::test_penalties_refuse_wrong_values_and_write_nothing",
        ),
    ),
    52: Row(
        "op: block table",
        (
            "ops/test_attention.py::test_wrong_arguments_are_named",
            "ops/test_attention.py::test_wrong_metadata_is_named",
            "ops/test_kv_cache.py::test_copy_blocks_refuses_what_depends_on_the_order",
            "ops/test_kv_cache.py::test_write_refuses_a_slot_for_two_tokens_and_writes_nothing",
        ),
    ),
    53: Row(
        "op: sizes that overflow",
        (
            "test_tensor.py::test_impossible_sizes_are_refused",
            "ops/test_attention_plan.py::test_huge_shapes_saturate",
            "ops/test_gemm_cuda.py::test_plan_refuses_extents_no_index_holds",
        ),
    ),
    54: Row(
        "op: output in the memory of an input",
        (
            f"{ARGUMENTS}::test_the_output_may_not_share_memory_with_an_input",
            "ops/test_activation.py::test_silu_and_mul_wants_gate_and_up_apart_from_out",
            "ops/test_kv_cache.py::test_caches_may_not_share_memory",
            "ops/test_norm.py::test_out_may_not_be_read_only_or_overlap",
        ),
    ),
    55: Row(
        "no free block",
        (
            f"{LLM}::test_unfinished_stream_lets_others_in",
            f"{LLM}::test_requests_wait_for_blocks",
            f"{LLM}::test_loading_refuses",
            "runner/test_block_manager.py::test_allocates_and_releases",
            "runner/test_scheduler.py::test_what_can_never_fit_is_refused",
            "runner/test_sampling_params.py::test_cache_plan_refuses",
        ),
    ),
    56: Row(
        "no host memory",
        (
            f"{LLM}::test_cache_that_no_machine_holds",
            f"{LLM}::test_logits_that_do_not_fit_are_refused_before_they_are_computed",
            f"{LLM}::test_error_in_a_step_gives_the_blocks_back",
            "runner/test_aborts.py::test_a_failing_step_ends_the_calls_that_it_ran_and_no_other",
            "test_tensor.py::test_impossible_sizes_are_refused",
        ),
    ),
    57: Row("no device memory", ("test_tensor.py::test_out_of_device_memory",)),
    58: Row(
        "fault of a CUDA kernel", not_yet="needs a kernel that fails on purpose; none is built"
    ),
    59: Row(
        "no such device",
        (
            f"{LLM}::test_loading_refuses",
            "test_cli.py::test_errors_are_one_line",
            "test_tensor.py::test_row_59_a_device_that_is_not_there",
            "test_tensor.py::test_row_59_a_tensor_of_a_gpu_that_cannot_be_used",
            "ops/test_gemm_cuda.py::test_plan_refuses_old_gpus_by_capability",
        ),
    ),
    60: Row(
        "use after close, from threads, after fork",
        (
            f"{LLM}::test_closed",
            f"{LLM}::test_threads_get_the_same_as_alone",
            "runner/test_threads.py::test_four_threads",
            "test_parallel.py::test_several_threads_may_call_at_once",
            "test_parallel.py::test_a_forked_child_has_its_own_threads",
        ),
    ),
    61: Row(
        "request cancelled",
        (
            "runner/test_aborts.py::test_abort",
            "runner/test_aborts.py::test_abort_of_one_answer",
            "runner/test_aborts.py::test_an_abort_during_a_step_takes_effect_at_its_end",
            "runner/test_aborts.py::test_a_ticket_that_is_forgotten_takes_its_requests_along",
            "runner/test_random_requests.py::test_each_as_if_it_were_alone",
            "test_generate.py::test_abandoned_stream_gives_its_blocks_back",
            f"{LLM}::test_interrupt_leaves_the_model_usable",
        ),
    ),
    62: Row("disk full while writing", not_yet=NO_CONVERSION),
    63: Row(
        "invariant broken inside",
        (
            "runner/test_block_manager.py::test_check_sees_what_is_broken_and_rebuild_mends_it",
            "runner/test_block_manager.py::test_refuses_to_release_what_is_not_held",
            "runner/test_scheduler.py::test_check_sees_what_is_wrong",
        ),
    ),
}


@functools.cache
def names_of(file: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """The test functions of a file, and its strings: among them the ids of cases."""
    nodes = list(ast.walk(ast.parse((TESTS / file).read_text())))
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    strings = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return frozenset(functions), tuple(strings)


def test_every_row_is_here():
    assert list(ROWS) == list(range(1, 64))


@pytest.mark.parametrize("number", ROWS)
def test_row_has_tests_or_a_reason(number):
    row = ROWS[number]
    assert row.tests or row.not_yet
    for test in row.tests:
        file, _, name = test.partition("::")
        function, _, case = name.partition("[")
        functions, strings = names_of(file)
        assert function in functions, f"{row.what}: no {test}"
        # "row 1" is no case of "row 10"
        assert not case or any(f"{string} ".startswith(f"{case} ") for string in strings), test
