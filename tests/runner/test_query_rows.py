"""Which rows of a step have queries or outputs, and which experts each of them asks."""

from __future__ import annotations

import numpy as np

from ernie_kernels.runner.batch import QueryRows


def test_banks_go_with_their_rows():
    banks = np.array([0, 1, 1, 0, 1, 0], np.uint8)
    found = QueryRows.last_of([3, 3], [1, 2], banks, "cpu")
    assert found.rows.numpy().tolist() == [2, 4, 5]
    assert found.banks.numpy().tolist() == [1, 1, 0]
    assert found.cu_seqlens_q.numpy().tolist() == [0, 1, 3]
    assert found.max_seqlen_q == 2


def test_rows_of_text_alone_have_no_banks():
    banks = np.array([0, 1, 0, 1, 0], np.uint8)
    assert QueryRows.last_of([3, 2], [1, 1], banks, "cpu").banks is None


def test_all_rows_are_not_looked_up():
    found = QueryRows.last_of([2, 1], [2, 1], None, "cpu")
    assert found.rows is None
    assert found.banks is None
