"""Segmenters: one file each, the parts of a caption that name things or relate them."""
