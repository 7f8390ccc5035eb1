"""What several images and videos may have of pixels together: of one request, of one call."""

from __future__ import annotations

from ernie_kernels.errors import LimitError


class PixelBudget:
    """A number of pixels that is used up.

    Args:
        limit: how many there are.
        whose: what messages say of those that are counted, such as ``"of this request"``.
        advice: what to do where they do not suffice.
    """

    def __init__(self, limit: int, whose: str, advice: str) -> None:
        self._limit = limit
        self._whose = whose
        self._advice = advice
        self._spent = 0

    def spend(self, where: str, pixels: int) -> None:
        """Raises LimitError where so many are not left."""
        self._spent += pixels
        if self._spent > self._limit:
            raise LimitError(
                f"{where}: with it the images and videos {self._whose} have {self._spent} pixels, the "
                f"limit is {self._limit}; {self._advice}"
            )
