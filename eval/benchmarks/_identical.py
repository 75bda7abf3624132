"""Rows whose wrong caption is the right one letter by letter: nobody can be right there."""

from __future__ import annotations

from ..sources import Group, Sources

WITHOUT = "without-identical"
VARIANT = {WITHOUT: "without the rows whose wrong caption equals a right one, where every comparison is a tie"}


def told(sources: Sources, named: list[Group]) -> list[Group]:
    """The rows, whose captions are texts yet: all of them, with a note that counts the identical ones, or for variant
    `WITHOUT` the others, and what is left out in `sources.excluded`."""
    bad = [group for group in named if _identical(group)]
    if not bad:
        return named
    if sources.variant != WITHOUT:
        few = ", ".join(group.id for group in bad[:3])
        note = f"in {len(bad)} of {len(named):,} rows the wrong caption equals a right one (first: {few})"
        sources.notes[f"{note}: always a tie; --variant {WITHOUT} leaves them out"] = None
        return named
    sources.excluded.update({group.id: "the wrong caption equals a right one" for group in bad})
    left = {group.id for group in bad}
    return [group for group in named if group.id not in left]


def _identical(group: Group) -> bool:
    right = group.right()[0]
    told_right = {text for text, is_right in zip(group.captions, right, strict=True) if is_right}
    return any(text in told_right for text, is_right in zip(group.captions, right, strict=True) if not is_right)
