"""Images and videos, from what a user gives to what the vision tower takes."""

from ernie_kernels.vision.item import VisualItem
from ernie_kernels.vision.limits import VisionLimits
from ernie_kernels.vision.processor import VisionProcessor
from ernie_kernels.vision.settings import VisionSettings

__all__ = ["VisionLimits", "VisionProcessor", "VisionSettings", "VisualItem"]
