"""Running commands in the tests' own process, and small tables of pictures for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from compal import cli
from compal.errors import CompalError


def run(*arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, the one line of the error)."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=True)
    if isinstance(result.exception, CompalError):
        assert "\n" not in str(result.exception)
        return result.exception.exit_code, result.stdout, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, ""


def table(folder: Path, rows: list[dict]) -> Path:
    """A .jsonl of images and captions, and its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        if not (folder / row["image"]).exists() and not row.get("absent"):
            pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / row["image"])
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(count: int = 3) -> list[dict]:
    return [{"image": f"{n}.png", "caption": f"picture number {n}"} for n in range(count)]
