"""Who runs a plan: one process, the ranks of torchrun, the actors of a Ray cluster."""
