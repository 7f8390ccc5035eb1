from __future__ import annotations

import sys

from ernie_kernels.cli import main

sys.exit(main())
