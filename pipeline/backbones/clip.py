"""CLIP ViT-B/32: open_clip:ViT-B-32-quickgelu/openai; 224 px, shortest bicubic, cropped, OpenAI's mean and std."""

from __future__ import annotations

from ._alias import alias

spec, load = alias("clip", "ViT-B-32-quickgelu/openai")
CITE = ("arXiv:2103.00020",)
