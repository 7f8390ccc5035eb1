"""What happens while it answers, to calls of ops, memory and devices."""

from __future__ import annotations

from input_limits.row import Row

LLM = "test_llm.py"
ARGUMENTS = "ops/test_argument_errors.py"
NO_CONVERSION = "nothing is converted or written yet"

ROWS = {
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
            "ops/test_vision.py::test_a_hostile_grid_is_refused",
            "ops/test_vision.py::test_a_buffer_of_another_length_is_refused_before_anything_is_made",
            "ops/test_vision_rows.py::test_rows_that_the_grid_does_not_tell_are_refused",
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
            "ops/test_vision_rows.py::test_rows_out_of_range_or_twice_are_refused_and_nothing_written",
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
            "ops/test_vision.py::test_sizes_have_bounds",
            "ops/test_vision_rows.py::test_a_merge_of_rows_too_wide_for_64_bits_is_refused",
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
            "runner/test_media_faults.py::test_an_error_in_the_tower_leaves_the_engine_usable",
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
            "runner/test_media_faults.py::test_interrupts_anywhere",
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
