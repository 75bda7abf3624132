"""What Ray knows of its cluster and of the dead, in words."""

from __future__ import annotations

from typing import Any


def resources(ray: Any) -> str:
    """What a cluster has, in words."""
    found = ray.cluster_resources()
    return f"{int(found.get('GPU', 0))} GPUs and {int(found.get('CPU', 0))} cores"


def reason(error: Exception) -> str:
    """The line of a Ray error that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "Error" in line or "died" in line or "exit" in line]
    return (told or lines or [type(error).__name__])[-1].split(". ")[0].rstrip(".")[:200]
