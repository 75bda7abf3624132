"""Scorers, one file each: a frozen `Config` and `build(config, dims)`."""
