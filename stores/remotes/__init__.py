"""Stores that a team shares: pushed, pulled, merged, and read where they lie."""
