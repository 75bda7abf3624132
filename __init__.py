"""compal: frozen dual-encoder features, extracted once, aligned in minutes, scored honestly."""

__version__ = "0.1.0"
