"""Frozen dual encoders, one file each: `spec(argument, level)` and `load(spec, device)`."""
