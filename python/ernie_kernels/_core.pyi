# _core is private and untyped; ops/*.py are its typed surface. This says so to type checkers, which
# else report every name as missing.
from typing import Any

def __getattr__(name: str) -> Any: ...
