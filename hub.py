"""The Hugging Face hub as a neighbour: whether it may be asked, and its libraries without their noise."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any


def is_offline() -> bool:
    """Whether the user told the hub's client to stay offline."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def reachable(host: str, port: int = 443) -> bool:
    """Whether a connection opens within 3 s. Behind a proxy only the download itself can tell."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        with socket.create_connection((host, port), timeout=3):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """transformers draws bars and warns of what real configurations hold; what matters of it is in our errors."""
    import transformers.utils

    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
