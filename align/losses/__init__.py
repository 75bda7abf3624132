"""Objectives, one file each: a frozen `Config` and `loss(scores, batch, config)`."""
