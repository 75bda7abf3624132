"""Scoring kernels: every image of a batch against every caption, token by token, without the big tensor.

Importable alone: they know torch and this package's errors, nothing else of compal.
"""
