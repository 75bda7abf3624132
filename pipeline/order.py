"""Frozen negatives of ARO's order tests: four orders of each caption's words, made once and written to one file.

    python -m compal.pipeline.order ROOT/coco_karpathy_test.json

The four are ARO's (Yuksekgonul et al., arXiv:2210.01936, appendix B): nouns among nouns and adjectives among
adjectives; all the rest; inside groups of three words; groups of three as wholes. Their code draws from one running
stream at every evaluation; here the draws of a caption depend on the seed and on that caption alone, so that the file
is a matter of seed and tagger. As there, captions are in small letters without punctuation and of 30 words at most.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, get_args

from ..errors import CompalError, InputError
from .negatives._tagger import Tagged, Tagger, tag_all, version
from .negatives._text import words_of

MODEL = "en_core_web_sm"
MAX_WORDS = 30
NAMES = {"coco_karpathy_test.json": "coco_order.jsonl", "flickr30k_test.json": "flickr30k_order.jsonl"}


def freeze(annotation: Path, out: Path, seed: int = 1, tagger: Tagger = "auto") -> str:
    """Write the negatives of an annotation, a list of {"image": str, "caption": [str, …]}, as JSON lines: first what
    they were made from, then {"image", "caption_options": [caption, four orders of it]} a caption.

    Returns the sha256 of the file, 64 hex digits; equal inputs give equal files. Raises `InputError` for an annotation
    that cannot be read and for a file that is there already.
    """
    if out.exists():
        raise InputError(f"{out} is there already", "Frozen negatives are never overwritten: name another file.")
    pairs = list(_captions(annotation))
    header = {
        "of": annotation.name,
        "of_sha256": hashlib.sha256(annotation.read_bytes()).hexdigest(),
        "seed": seed,
        "tagger": version(tagger, MODEL),
    }
    lines = [json.dumps(header)]
    tagged = tag_all((caption for _, caption in pairs), tagger, MODEL)
    for (image, caption), units in zip(pairs, tagged, strict=True):
        options = [plain(text) for text in (caption, *orders(units, seed))]
        lines.append(json.dumps({"image": image, "caption_options": options}, ensure_ascii=False))
    data = ("\n".join(lines) + "\n").encode()
    staged = out.with_name(f".{out.name}.{os.getpid()}")
    staged.write_bytes(data)
    staged.rename(out)
    return hashlib.sha256(data).hexdigest()


def _captions(path: Path) -> Iterator[tuple[str, str]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(rows, list):
        raise InputError(f"{path} is not a list of images")
    for number, row in enumerate(rows):
        image, captions = _field(row, "image"), _field(row, "caption")
        if not isinstance(image, str) or not isinstance(captions, list):
            raise InputError(f"{path} row {number} is not an 'image' and its list 'caption'")
        for caption in captions:
            if not isinstance(caption, str) or not plain(caption):
                raise InputError(f"{path} row {number} has a caption without words")
            yield image, caption


def _field(row: Any, name: str) -> Any:
    return row.get(name) if isinstance(row, dict) else None


def plain(caption: str) -> str:
    """The caption as ARO compares it: small letters, no . ! " ( ) * # : ; ~, single spaces, 30 words at most."""
    words = re.sub(r'[.!"()*#:;~]', " ", caption.lower()).split()
    return " ".join(words[:MAX_WORDS])


def orders(tagged: Tagged, seed: int) -> tuple[str, str, str, str]:
    """Four orders of a caption's words, see the module."""
    words = [unit.text for unit in tagged.units]
    nouns = [at for at, unit in enumerate(tagged.units) if unit.tag == "noun"]
    adjectives = [at for at, unit in enumerate(tagged.units) if unit.tag == "adjective"]
    named = {*nouns, *adjectives}
    others = [at for at in range(len(words)) if at not in named]

    def rng(kind: str) -> Random:
        return Random(f"{seed}/{tagged.text}/{kind}")

    # A unit may be several words ("traffic light"); groups of three count words.
    single = [word.text for word in words_of(tagged.text)]
    threes = [single[start : start + 3] for start in range(0, len(single), 3)]
    within, wholes = rng("within-trigrams"), rng("trigrams")
    return (
        " ".join(_permuted(words, (nouns, adjectives), rng("nouns-adjectives"))),
        " ".join(_permuted(words, (others,), rng("others"))),
        " ".join(word for three in threes for word in within.sample(three, len(three))),
        " ".join(word for three in wholes.sample(threes, len(threes)) for word in three),
    )


def _permuted(words: Sequence[str], classes: Sequence[Sequence[int]], rng: Random) -> list[str]:
    """The words with those at the places of each class in another order among themselves."""
    found = list(words)
    for places in classes:
        for place, source in zip(places, rng.sample(places, len(places)), strict=True):
            found[place] = words[source]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m compal.pipeline.order", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("annotation", type=Path, help="coco_karpathy_test.json or flickr30k_test.json")
    parser.add_argument("--out", type=Path, help="default: coco_order.jsonl, flickr30k_order.jsonl beside it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tagger", choices=get_args(Tagger), default="auto")
    given = parser.parse_args(arguments)
    name = NAMES.get(given.annotation.name, f"{given.annotation.stem}_order.jsonl")
    out = given.out or given.annotation.with_name(name)
    try:
        digest = freeze(given.annotation, out, given.seed, given.tagger)
    except CompalError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{out}  sha256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
