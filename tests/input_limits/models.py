"""What a model's own files say: configuration, tokenizer, chat template."""

from __future__ import annotations

from input_limits.row import Row

CONFIG = "models/test_config.py"
MOE_CONFIG = "models/test_moe_config.py"
VL_CONFIG = "models/test_vl_config.py"
MALFORMED_TOKENIZER = "test_malformed_tokenizers.py"
TEMPLATE = "test_chat_template.py"
TEMPLATE_LIMITS = "test_chat_template_limits.py"

ROWS = {
    26: Row(
        "config: key missing or of the wrong type",
        (
            f"{CONFIG}::test_row_26_missing_key",
            f"{CONFIG}::test_row_26_size_of_the_wrong_type",
            f"{CONFIG}::test_row_26_wrong_type",
            f"{CONFIG}::test_row_26_malformed_file",
            f"{CONFIG}::test_row_26_missing_file",
            f"{MOE_CONFIG}::test_row_26_missing_key",
            f"{MOE_CONFIG}::test_row_26_size_of_the_wrong_type",
            f"{MOE_CONFIG}::test_row_26_wrong_type",
            f"{VL_CONFIG}::test_row_26_missing_key_of_the_tower",
            f"{VL_CONFIG}::test_row_26_wrong_type",
        ),
    ),
    27: Row(
        "config: dimension out of range",
        (
            f"{CONFIG}::test_row_27_dimension_out_of_range",
            f"{CONFIG}::test_row_27_dimension_one_is_never_a_crash",
            f"{MOE_CONFIG}::test_row_27_dimension_out_of_range",
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
            "vision/test_refused_requests.py::test_a_tokenizer_of_other_ids_is_refused",
        ),
    ),
    29: Row(
        "config: number of experts",
        (
            f"{MOE_CONFIG}::test_row_29_zero",
            f"{MOE_CONFIG}::test_row_29_more_choices_than_experts",
            f"{MOE_CONFIG}::test_row_29_groups",
            f"{VL_CONFIG}::test_row_29_more_choices_than_experts",
        ),
    ),
    30: Row(
        "config: unsupported value",
        (
            f"{CONFIG}::test_row_30_unsupported_value",
            f"{MOE_CONFIG}::test_row_30_unsupported_value",
            f"{VL_CONFIG}::test_row_30_unsupported_value",
            "vision/test_processor.py::test_values_that_no_code_is_for",
        ),
    ),
    31: Row(
        "config: number that is not usable",
        (
            f"{CONFIG}::test_row_31_number_not_usable",
            f"{CONFIG}::test_row_31_nested_theta",
            f"{MOE_CONFIG}::test_row_31_norm_min",
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
}
