"""CLIP ViT-L/14: open_clip:ViT-L-14-quickgelu/openai; 224 px, shortest bicubic, cropped, OpenAI's mean and std."""

from __future__ import annotations

from ._alias import alias

spec, load = alias("clip-l14", "ViT-L-14-quickgelu/openai")
CITE = ("arXiv:2103.00020",)
