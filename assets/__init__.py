"""Weights that compal made and ships: `shapes-vit` and the heads fitted on it."""
