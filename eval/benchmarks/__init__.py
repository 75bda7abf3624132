"""Benchmarks, one file each: `INFO`, `items(root)` and `groups(root)`."""
