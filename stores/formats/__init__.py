"""Formats of others: exporting a store to them, importing from them. One file each; the folder is the list."""
