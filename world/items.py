"""Scenes and captions as items, so that dataset and benchmarks give one picture one key."""

from __future__ import annotations

from functools import partial

from ..stores.items import Item
from ..workspace import Workspace
from .captions import Caption
from .render import render
from .render3d import kept
from .scenes import Scene
from .scenes3d import Scene3D


def picture(scene: Scene, source: str) -> Item:
    """The scene as an image item; it is rendered when it is decoded, not when it is planned."""
    return Item.rendered(scene.recipe(), partial(render, scene), source, scene.boxes())


def picture3d(scene: Scene3D, source: str) -> Item:
    """The same of a scene of solids, whose picture is kept below the workspace in use: to render it takes a second."""
    folder = Workspace.in_use().path / "pictures"
    return Item.rendered(scene.recipe(), partial(kept, scene, folder), source, scene.boxes())


def caption(told: Caption, source: str) -> Item:
    """The caption as a text item with its segments."""
    return Item.caption(told.text, source, told.segments)
