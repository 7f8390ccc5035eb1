"""The optional packages behind the extras ``vision`` and ``video``."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from ernie_kernels.errors import UnsupportedError


def pillow() -> ModuleType:
    """The module ``PIL.Image``.

    Raises:
        UnsupportedError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise _missing("images", "Pillow", "vision") from None
    return Image


def check_pyav() -> None:
    """Raises UnsupportedError where PyAV is not installed. This process never imports it."""
    if importlib.util.find_spec("av") is None:
        raise _missing("video files", "PyAV", "video")


def _missing(what: str, package: str, extra: str) -> UnsupportedError:
    return UnsupportedError(
        f"{what} need the package {package}, which is not installed; "
        f"pip install 'ernie-kernels[{extra}]'"
    )
