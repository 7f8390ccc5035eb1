"""Is a loaded model the one that the checkpoint describes? Layer by layer against float64.

``formulas`` is the dense architecture in numpy, ``stored_weights`` reads the checkpoint by a path of
its own, ``engine_trace`` runs the engine's own layers one after the other, ``bounds`` says how far
the two may be apart, and ``check`` brings them together.
"""

from ernie_kernels.verify.check import verify, verify_loaded
from ernie_kernels.verify.report import Limits, Report

__all__ = ["Limits", "Report", "verify", "verify_loaded"]
