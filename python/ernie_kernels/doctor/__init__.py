"""What a machine has, and whether everything computes right on it.

Nothing here raises because something is broken: it becomes a line of the report. ``facts`` looks
around, ``op_checks`` holds one small check per op, ``examination`` runs it all.
"""

from ernie_kernels.doctor.examination import Examination, OpResult, examine
from ernie_kernels.doctor.facts import Fact

__all__ = ["Examination", "Fact", "OpResult", "examine"]
