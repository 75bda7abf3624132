"""Perception Encoder B/16: open_clip:PE-Core-B-16/meta; 224 px, squash bilinear, mean and std 0.5."""

from __future__ import annotations

from ._alias import alias

spec, load = alias("pe", "PE-Core-B-16/meta")
CITE = ("arXiv:2504.13181",)
