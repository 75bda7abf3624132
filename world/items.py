"""Scenes and captions as items, so that dataset and benchmarks give one picture one key."""

from __future__ import annotations

from functools import partial

from ..stores.items import Item
from .captions import Caption
from .render import render
from .scenes import Scene


def picture(scene: Scene, source: str) -> Item:
    """The scene as an image item; it is rendered when it is decoded, not when it is planned."""
    return Item.rendered(scene.recipe(), partial(render, scene), source, scene.boxes())


def caption(told: Caption, source: str) -> Item:
    """The caption as a text item with its segments."""
    return Item.caption(told.text, source, told.segments)
