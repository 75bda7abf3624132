"""Methods that make hard-negative captions, one file each; see docs/guides/negatives.md."""
