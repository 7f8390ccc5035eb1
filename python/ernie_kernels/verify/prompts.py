"""The token sequences that a verification runs: the same every time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ernie_kernels.tokenizer import Tokenizer

TEXT = """\
The old harbour had been quiet for a week when the first boats came back. Nobody asked where they
had been: 3 of the 17 were missing, and the rain (it had not stopped since Monday) said enough.
def mean(values): return sum(values) / len(values)
北京是中国的首都，也是一座有三千多年历史的城市。春天来了，花都开了。
What is 12 * 12? It is 144. Return a list of all names, sorted by date, and close the file.
"""


def make_prompts(
    tokenizer: Tokenizer | None,
    vocab_size: int,
    max_model_len: int,
    tokens: int,
    without: frozenset[int] = frozenset(),
) -> list[npt.NDArray[np.int64]]:
    """One token, a few, some from all of the vocabulary, and ``tokens`` of them.

    Of text where there is a tokenizer, else drawn with a fixed seed; none longer than the model
    allows. None has a token of ``without``.
    """
    rng = np.random.default_rng(20)
    drawn = rng.integers(0, vocab_size, 4096)
    drawn = drawn[~np.isin(drawn, list(without))]
    text = drawn
    if tokenizer is not None:
        ids = np.array(tokenizer.encode(TEXT), np.int64)
        if len(ids):
            text = np.resize(ids, 4096)
    wanted = [(text[3:], 1), (text[7:], 9), (drawn, 23), (text, tokens)]
    return [ids[: min(n, tokens, max_model_len)].astype(np.int64) for ids, n in wanted]
