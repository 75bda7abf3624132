"""The words of the world and which of their combinations are held out.

Synonyms stand behind each value; a caption draws one of them per value and keeps to it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

SHAPES: dict[str, tuple[str, str]] = {  # name: (singular, plural)
    name: (name, plural)
    for name, plural in (
        ("circle", "circles"),
        ("square", "squares"),
        ("triangle", "triangles"),
        ("pentagon", "pentagons"),
        ("hexagon", "hexagons"),
        ("star", "stars"),
        ("heart", "hearts"),
        ("cross", "crosses"),
        ("diamond", "diamonds"),
        ("ring", "rings"),
        ("crescent", "crescents"),
        ("arrow", "arrows"),
        ("oval", "ovals"),
        ("dome", "domes"),
        ("bar", "bars"),
        ("trapezoid", "trapezoids"),
        ("drop", "drops"),
        ("corner", "corners"),
        ("bolt", "bolts"),
        ("house", "houses"),
        ("flower", "flowers"),
        ("hourglass", "hourglasses"),
        ("frame", "frames"),
        ("fish", "fish"),
    )
}

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 38),
    "green": (34, 150, 60),
    "blue": (34, 84, 214),
    "yellow": (246, 214, 34),
    "orange": (246, 134, 22),
    "purple": (132, 48, 178),
    "pink": (250, 142, 188),
    "brown": (124, 74, 34),
    "black": (22, 22, 22),
    "white": (252, 252, 252),
    "gray": (136, 136, 136),
    "cyan": (60, 208, 232),
    "lime": (164, 234, 50),
    "navy": (16, 26, 98),
    "maroon": (112, 12, 44),
    "olive": (124, 126, 28),
}

TEXTURES = ("solid", "striped", "dotted", "checked")
SIZES = ("small", "medium", "large")
CATEGORIES = ("colour", "material", "size", "quantity", "relation")

SYNONYMS: dict[str, tuple[str, ...]] = {
    "purple": ("purple", "violet"),
    "gray": ("gray", "grey"),
    "solid": ("solid", "plain"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "checked": ("checked", "checkered"),
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "big", "huge"),
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
}

NUMBERS = ("zero", "one", "two", "three", "four", "five")

# "{0}" is the list of what is in the scene ("a, b and c"); the templates differ in what surrounds it.
TEMPLATES = (
    "{0}",
    "a picture of {0}",
    "an image with {0}",
    "there is {0}",
    "a drawing of {0}",
    "this picture shows {0}",
    "{0} in a picture",
    "an image of {0}",
)
# Arrangements of the same words that no training caption uses.
UNSEEN_TEMPLATES = (
    "in this image there is {0}",
    "a picture with {0} in an image",
    "{0} there in a drawing",
    "shows an image of {0}",
)
JOINTS = ((", ", " and "), (" and ", " and "), (", ", " with "), (", ", " next to "))
UNSEEN_JOINTS = ((" with ", " with "), (" next to ", ", "), (", ", ", "))
ORDERS = (("size", "texture", "colour"), ("size", "colour", "texture"), ("texture", "size", "colour"))


@dataclass(frozen=True)
class Language:
    """What a world is told in; the grammar in `captions` is the same for all.

    nouns             shape → (singular, plural)
    synonyms          value → the words that may stand for it
    templates, unseen_templates   "{0}" is the list of what is in the scene
    joints, unseen_joints         what stands between its members, and before the last
    orders            of the adjectives
    """

    nouns: dict[str, tuple[str, str]]
    synonyms: dict[str, tuple[str, ...]]
    templates: tuple[str, ...]
    unseen_templates: tuple[str, ...]
    joints: tuple[tuple[str, str], ...]
    unseen_joints: tuple[tuple[str, str], ...]
    orders: tuple[tuple[str, ...], ...]


FLAT = Language(SHAPES, SYNONYMS, TEMPLATES, UNSEEN_TEMPLATES, JOINTS, UNSEEN_JOINTS, ORDERS)
"""The words of the embedded world of flat shapes."""


def _held_out(kind: str, shape: str, value: str, one_in: int) -> bool:
    digest = hashlib.sha256(f"{kind}:{shape}:{value}".encode()).digest()
    return digest[0] % one_in == 0


# About one in nine colour pairings and one in nine texture pairings of the shapes; no shape, colour or
# texture is itself unseen. Solid is never held out, since "no texture mentioned" is how most objects are.
HELD_OUT_COLOURS = frozenset((s, c) for s in SHAPES for c in COLOURS if _held_out("colour", s, c, 9))
HELD_OUT_TEXTURES = frozenset((s, t) for s in SHAPES for t in TEXTURES[1:] if _held_out("texture", s, t, 9))


def words() -> list[str]:
    """Every word that any caption of the world can hold, sorted: the vocabulary of `shapes-vit`."""
    texts = [*COLOURS, *TEXTURES, *SIZES, *NUMBERS, *TEMPLATES, *UNSEEN_TEMPLATES, "a", "an", "of"]
    texts += [word for forms in SHAPES.values() for word in forms]
    texts += [word for forms in SYNONYMS.values() for word in forms]
    texts += [joint for joints in (*JOINTS, *UNSEEN_JOINTS) for joint in joints]
    texts += ["with stripes", "with dots", "with checks", "."]
    found = {
        word for text in texts for word in text.replace("{0}", " ").replace(",", " , ").replace("-", " - ").split()
    }
    return sorted(found | {"."})
