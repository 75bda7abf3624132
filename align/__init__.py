"""From feature stores to a scorer."""
