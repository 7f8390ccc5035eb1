"""Images and videos, from what a user gives to what the vision tower takes."""

from ernie_kernels.vision.item import VisualItem

__all__ = ["VisualItem"]
