"""The words that the segmenter `rules` knows; what is in no list is a noun."""

from __future__ import annotations


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _set(
    """a an the this that these those his her its their my our your some any every each both all no another several
    many few various multiple different other numerous"""
)
NUMBERS = _set("one two three four five six seven eight nine ten eleven twelve dozen dozens half hundred single")
COLOURS = _set(
    """red green blue yellow orange purple violet pink brown black white gray grey cyan lime navy maroon olive
    beige tan gold golden silver teal turquoise dark light bright pale colorful colourful multicolored
    multi-colored blonde blond"""
)
MATERIALS = _set(
    """solid plain striped stripy dotted spotted checked checkered wooden metal metallic plastic leather stone
    brick concrete glass ceramic rubber paper grassy sandy snowy rocky furry fluffy floral stuffed paved"""
)
SIZES = _set(
    """small little tiny medium medium-sized large big huge tall short long wide narrow giant mini massive thick
    thin"""
)
OTHERS = _set(
    """old young new empty full open closed clean dirty dry wet hot cold fresh nice pretty beautiful cute busy
    crowded messy modern vintage antique male female adult elderly smiling happy sad asian american fat round
    rectangular flat fancy cooked raw sliced fried broken frozen electric double low high deep shallow sunny
    cloudy foggy clear calm ripe healthy wild domestic public first second third last same whole ornate lush
    bare hairy tiled"""
)
ADJECTIVES = COLOURS | MATERIALS | SIZES | OTHERS

PREPOSITIONS = _set(
    """of in on at by with near over under above below beside behind between beneath underneath around along across
    against through inside outside into onto from to for toward towards upon within without among amid off past
    like up down atop during beyond via alongside about out"""
)
# Matched before single words, the longest first.
COMPOUND = (
    "to the left of", "to the right of", "on the left of", "on the right of", "on the side of",
    "on the back of", "in the middle of", "at the top of", "at the bottom of", "at the end of",
    "in the back of", "on the edge of", "at the edge of", "on top of", "in front of", "in back of",
    "in between", "left of", "right of", "higher than", "lower than", "next to", "close to", "out of",
    "away from", "across from",
)  # fmt: skip
# What only puts one thing beside another in a list: of these alone no relation is made.
LISTING = frozenset({"with", "next to", "of"})

CONJUNCTIONS = _set("and or but while as than then because when where if so nor")
PRONOUNS = _set(
    """it he she they we you i him them us me who whom which what there here someone somebody something anyone
    everyone everything nobody nothing others itself himself herself themselves"""
)
ADVERBS = _set(
    """very not also just still too together away back forward outdoors indoors upside sideways nearby up down off
    out in on over around alone ahead aboard apart quite almost only both about"""
)
AUXILIARIES = _set(
    """is are was were be been being am has have had do does did can could will would may might must should"""
)
VERBS = _set(
    """sit sits sat stand stands stood hold holds held ride rides rode walk walks run runs lie lies lay lays eat
    eats ate drink drinks fly flies play plays throw throws threw hit hits swing swings catch catches wear wears
    look looks watch watches carry carries pull pulls push pushes jump jumps wait waits show shows sleep sleeps
    lean leans hang hangs hung cut cuts cook cooks prepare prepares pose poses stare stares cross crosses drive
    drives travel travels move moves make makes take takes get gets go goes come comes use uses talk talks read
    reads reach reaches touch touches graze grazes surround surrounds cover covers contain contains feature
    features display displays ski skis surf surfs skateboard skateboards swim swims climb climbs perform
    performs try tries enjoy enjoys give gives feed feeds face faces fill fills made seen taken worn shown set
    put leads lead need needs drawn tied thrown torn built known given grown bent let lets stopped keep keeps
    kept seem seems appear appears stay stays"""
)
# Words that end in -ing or -ed and are nouns.
NOUNS = _set(
    """building buildings wedding clothing ceiling railing king ring string thing wing wings spring evening morning
    painting paintings frosting icing housing lightning pudding dressing stuffing landing crossing bedding bed
    shed sled seed weed breed reed speed bread meeting parking dining living seating opening awning topping
    toppings siding carving"""
)
# Nouns that say how much of the next noun there is: "a bowl of soup" is one thing.
QUANTITIES = _set(
    """group groups bunch bunches pair pairs piece pieces slice slices bowl bowls cup cups plate plates glass
    glasses bottle bottles couple crowd herd flock row rows pile piles stack stacks lot lots number set bag bags
    box boxes basket baskets vase vases line lines variety assortment bouquet kind type pack team collection jar
    mug tray trays dozens hundreds bit"""
)
# The picture itself, named in front of or behind what is in it.
PICTURES = _set(
    """picture pictures image images photo photos photograph photographs drawing drawings illustration sketch"""
)
# A material named behind the noun: "a red star with stripes".
PATTERNS = _set("stripes dots checks spots")
# Adjectives that are nouns behind another noun: "a traffic light".
EITHER = _set("light orange glass dark stone brick metal")
# "a woman that is holding a cat": what stands between two phrases may hold these beside a verb.
RELATIVES = _set("that who which")
PLURALS = _set("people men women children kids sheep cattle")
