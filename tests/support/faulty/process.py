"""Drivers as processes, leaders of sessions of their own, so that a test can kill all that they started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

SUPPORT = Path(__file__).parent.parent


def start(*arguments, before=(), **environment):
    """`python [BEFORE] -m faulty.driver ARGUMENTS`."""
    command = [sys.executable, *before, "-m", "faulty.driver", *map(str, arguments)]
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    told = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=told, start_new_session=True
    )


def ended(child):
    """(exit code, what it printed as JSON or {}, stderr)."""
    with child:
        try:
            out, error = child.communicate(timeout=240)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
    return child.returncode, json.loads(out) if out.startswith("{") else {}, error
