"""What features are on disk. The only contract between the stages; no torch here."""
