"""The Triton kernels run in the interpreter here: it must be on before triton is imported."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"
