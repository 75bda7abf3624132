"""SigLIP 2 ViT-B/16: open_clip:ViT-B-16-SigLIP2-256/webli; 256 px, squash bicubic, mean and std 0.5."""

from __future__ import annotations

from ._alias import alias

spec, load = alias("siglip2", "ViT-B-16-SigLIP2-256/webli")
CITE = ("arXiv:2502.14786",)
