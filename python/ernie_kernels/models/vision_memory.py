"""What images and videos take of memory while prompts with them are answered, beside the weights."""

from __future__ import annotations

# Of features that are kept for later; and of those that prompts hold, beyond which only the first of
# them gets more. In bfloat16 with 2560 values a row, 13,000 rows: forty pictures of 512 x 512.
MAX_FEATURE_BYTES = 64 << 20
