"""SigLIP 2 giant/16: open_clip:ViT-gopt-16-SigLIP2-384/webli; 384 px, squash bicubic, mean and std 0.5."""

from __future__ import annotations

from ._alias import alias

spec, load = alias("siglip2-giant", "ViT-gopt-16-SigLIP2-384/webli")
CITE = ("arXiv:2502.14786",)
