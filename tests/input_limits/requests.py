"""What is asked of a model: prompts, images, videos, parameters."""

from __future__ import annotations

from input_limits.row import Row

CONFIG = "models/test_config.py"
MEDIA_ARGUMENTS = "models/test_media_arguments.py"
MEDIA_POSITIONS = "models/test_media_positions.py"
TOKENIZER = "test_tokenizer.py"
TEMPLATE = "test_chat_template.py"
LLM = "test_llm.py"
GENERATE = "test_llm.py::test_generate_refuses_and_nothing_changes"
FORWARD = "test_llm.py::test_forward_refuses"
PARAMS = "runner/test_sampling_params.py::test_params_name_field_value_and_range"
IMAGES = "vision/test_images.py"
IMAGE_LIMITS = "vision/test_image_limits.py"
PROCESSOR = "vision/test_processor.py"
REFUSED = "vision/test_refused_requests.py"
BAD_PART = f"{REFUSED}::test_a_bad_part_is_named_and_nothing_runs"
BAD_ITEM = f"{REFUSED}::test_a_bad_item_of_the_second_prompt_lets_none_run"
VIDEOS = "vision/test_videos.py"

ROWS = {
    34: Row("no tokens", (GENERATE, FORWARD, "test_cli.py::test_empty_prompt")),
    35: Row(
        "longer than the model",
        (
            GENERATE,
            FORWARD,
            f"{LLM}::test_chat_refuses",
            "test_cli.py::test_chat_goes_on_after_a_message_that_is_too_long",
            f"{REFUSED}::test_too_long",
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
            "test_media_chat.py::test_typed_placeholders_are_text",
            "test_media_chat.py::test_baidus_placeholders_typed_are_text",
        ),
    ),
    39: Row(
        "placeholders without media",
        (
            f"{MEDIA_POSITIONS}::test_row_39_types_that_do_not_follow_the_grids",
            f"{MEDIA_ARGUMENTS}::test_row_39_types_of_tokens",
            f"{MEDIA_ARGUMENTS}::test_row_39_placeholders_are_not_as_many_as_features",
            f"{MEDIA_ARGUMENTS}::test_row_39_two_images_with_other_text_between",
            f"{MEDIA_POSITIONS}::test_any_types_give_positions_or_an_input_error",
            f"{REFUSED}::test_placeholders_and_media_that_do_not_go_together",
            f"{REFUSED}::test_media_beside_text",
            f"{REFUSED}::test_a_template_that_does_not_show_what_there_is",
            f"{REFUSED}::test_a_model_of_text_alone_says_so",
        ),
    ),
    40: Row(
        "picture of an unknown format",
        (
            f"{IMAGES}::test_row_40_other_formats",
            f"{IMAGES}::test_row_40_truncated_files",
            f"{IMAGES}::test_row_40_a_gif_is_a_video",
            f"{IMAGES}::test_row_40_sources_that_hold_no_picture",
            f"{IMAGES}::test_a_pipe_is_refused_at_once",
            f"{REFUSED}::test_local_files_are_those_of_one_folder",
            BAD_PART,
            BAD_ITEM,
            "cli/test_media_options.py::test_a_file_that_is_not_there_is_named",
        ),
    ),
    41: Row(
        "picture beyond the limits",
        (
            f"{IMAGE_LIMITS}::test_row_41_claims_beyond_the_limits",
            f"{IMAGE_LIMITS}::test_row_41_limits_are_inclusive",
            f"{IMAGE_LIMITS}::test_row_41_bytes_are_counted_before_they_are_read",
            f"{IMAGE_LIMITS}::test_row_41_scans_of_a_jpeg",
            f"{IMAGE_LIMITS}::test_row_41_scans_are_counted_to_the_end_of_the_image",
            f"{IMAGE_LIMITS}::test_row_41_an_end_inside_a_segment_is_none",
            f"{IMAGE_LIMITS}::test_row_41_segments_of_a_jpeg",
            f"{IMAGE_LIMITS}::test_row_41_chunks_of_a_png",
            f"{IMAGE_LIMITS}::test_row_41_a_bomb_costs_little",
            f"{IMAGE_LIMITS}::test_row_41_jpeg_fill_bytes_cost_little",
            f"{IMAGE_LIMITS}::test_row_41_limits_that_are_no_limits",
            f"{IMAGES}::test_of_an_animation_the_first_frame",
            f"{REFUSED}::test_a_bomb_in_a_request_costs_little",
            f"{REFUSED}::test_a_picture_of_pillow_is_refused_before_it_is_decoded",
            f"{REFUSED}::test_too_many",
            BAD_PART,
            BAD_ITEM,
        ),
    ),
    42: Row(
        "picture without extent",
        (
            f"{IMAGE_LIMITS}::test_row_42_claims_of_nothing",
            f"{IMAGES}::test_row_42_arrays_without_extent",
            "vision/test_resize.py::test_row_42_extreme_aspects",
            "vision/test_resize.py::test_row_42_no_extent",
            BAD_PART,
            BAD_ITEM,
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
            BAD_PART,
            BAD_ITEM,
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
            f"{VIDEOS}::test_row_45_frames_between_those_that_are_kept_are_decoded_too",
            f"{VIDEOS}::test_row_45_the_time_of_a_gif",
            f"{VIDEOS}::test_row_45_no_room_for_a_temporary_file",
            f"{VIDEOS}::test_row_45_truncated_files",
            f"{VIDEOS}::test_row_45_a_file_of_sound",
            f"{VIDEOS}::test_row_45_size_and_number_are_known_before_decoding",
            f"{VIDEOS}::test_row_45_memory_of_the_decoder",
            f"{VIDEOS}::test_row_45_a_decoder_that_hangs_is_killed",
            f"{VIDEOS}::test_row_45_a_decoder_that_dies_or_lies",
            f"{VIDEOS}::test_no_child_is_left_when_the_parent_stops_early",
            BAD_PART,
            BAD_ITEM,
        ),
    ),
    46: Row(
        "sampling parameters",
        (
            PARAMS,
            f"{LLM}::test_chat_names_the_wrong_argument",
            "test_media_chat.py::test_reasoning_max_tokens_is_checked",
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
            "ops/test_vision.py::test_no_items_are_no_patches",
            "ops/test_vision_rows.py::test_merging_nothing_gives_nothing",
            "ops/test_vision_rows.py::test_scattering_nothing_changes_nothing",
            "ops/test_wint8.py::test_empty_extents",
        ),
    ),
}
