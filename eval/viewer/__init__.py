"""The HTML report: one file that needs no network, with the alignment viewer inside."""
