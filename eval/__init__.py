"""From a scorer and stores to numbers that can be checked."""
