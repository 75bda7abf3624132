"""Perception Encoder L/14: open_clip:PE-Core-L-14-336/meta; 336 px, squash bilinear, mean and std 0.5."""

from __future__ import annotations

from ._alias import alias

spec, load = alias("pe-l14", "PE-Core-L-14-336/meta")
CITE = ("arXiv:2504.13181",)
