"""Zero-shot classification on the embedded world: which colour, which texture has the one thing in the picture.

A picture of a single object, its full caption, and the same caption with three other colours, or with the three other
textures. Nothing has to be bound: an encoder that knows words and things does well here, so that a method which wins on
`shapes` and loses here has forgotten something.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import count, islice

from ...stores.items import Item, caption_key
from ...world.captions import Caption, tell, word_freely
from ...world.items import caption, picture
from ...world.scenes import Scene
from ...world.splits import plain, seeded
from ...world.vocabulary import COLOURS, TEXTURES
from ..sources import Group, Sources, limited

SCENES = 250
WRONG = 3
KINDS = {"colour": tuple(COLOURS), "texture": TEXTURES}
INFO = {
    "title": "shapes-attributes (zero-shot colour and texture, one of four)",
    "metric": "pairs",
    "chance": {"accuracy": 100 / (1 + WRONG)},
    "citation": "compal",
    "licence": "Apache-2.0",
    "url": "generated, nothing to download",
    "size": SCENES * len(KINDS),
}


def _asked() -> Iterator[tuple[Scene, str, tuple[Caption, ...]]]:
    """Scenes of one object, what is asked of them, and the captions, the right one first."""
    single = (number for number in count() if plain("test", number)[0].count == 1)
    for number in islice(single, SCENES):
        scene, rng = plain("test", number)[0], seeded("attributes", number)
        wording = word_freely(rng, scene, full=True)
        for kind, values in KINDS.items():
            own = getattr(scene.groups[0], kind)
            others = rng.sample([value for value in values if value != own], WRONG)
            told = [
                dataclasses.replace(scene, groups=(dataclasses.replace(scene.groups[0], **{kind: value}),))
                for value in (own, *others)
            ]
            yield scene, kind, tuple(tell(other, wording) for other in told)


def items(sources: Sources) -> Iterator[Item]:
    """The pictures and captions that must be in the store."""
    for scene, _, captions in _asked():
        yield picture(scene, "shapes/attributes")
        for told in captions:
            yield caption(told, "shapes/attributes")


def groups(sources: Sources) -> Iterator[Group]:
    """A picture, its caption and three others; category colour or texture."""
    truth = ((True,) + (False,) * WRONG,)
    found = (
        Group(
            f"{kind}/{number}",
            (picture(scene, "").key,),
            tuple(caption_key(told.text) for told in captions),
            truth,
            kind,
            "shapes/attributes",
        )
        for number, (scene, kind, captions) in enumerate(_asked())
    )
    yield from limited(found, sources.limit)
