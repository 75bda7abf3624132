"""Rules for negatives: what holds of every one, golden cases, WordNet, neighbours."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compal import registry
from compal.config import from_dict
from compal.errors import CompalError, InputError, MissingFeatures, UnknownName, UsageError
from compal.pipeline.negatives import _tagger, _wordnet, mined, replace, shuffle, swap
from compal.pipeline.negatives._contract import Around, Caption
from compal.pipeline.negatives._lexicon import lexicon, plural_of
from compal.pipeline.negatives._text import bag, correct_articles, plain, wanted_article, wrong_articles
from compal.stores.items import caption_key
from compal.workspace import Workspace

DATA = Path(__file__).parent.parent / "data"
COCO = [
    one["caption"] for one in json.loads((DATA / "coco/annotations/captions_val2017.json").read_text())["annotations"]
]
SUGARCREPE = [
    row["caption"]
    for file in sorted((DATA / "sugarcrepe").glob("*.json"))
    for row in json.loads(file.read_text()).values()
]
RULES = {"swap": swap, "replace": replace, "shuffle": shuffle}
ALL_TYPES = ("words", "bigrams", "trigrams", "within-trigrams", "nouns-adjectives", "others")
CONFIGS = {
    "swap": swap.Config(per_type=3, tagger="own"),
    "replace": replace.Config(per_type=3, tagger="own", lexicon="own"),
    "shuffle": shuffle.Config(types=ALL_TYPES, per_type=2, tagger="own"),
}
VOCABULARY = "a an the two red blue big apple apples dogs dog umbrella man woman on next to in front of with holding"
WORDS = st.sampled_from(VOCABULARY.split())
TEXTS = st.one_of(st.text(max_size=40), st.lists(WORDS, max_size=12).map(" ".join))


def captions(*texts):
    return [Caption(caption_key(text), text) for text in texts]


def around(missed=lambda index, why: None, path="unused"):
    return Around(Workspace(Path(path)), missed=missed)


def made(name, texts, seed=0, config=None, missed=lambda index, why: None):
    return list(RULES[name].generate(captions(*texts), config or CONFIGS[name], seed, around(missed)))


# --- what holds of every negative ------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4, unique=True), seed=st.integers(0, 3))
def test_a_negative_differs_and_is_drawn_from_its_caption_alone(name, texts, seed):
    found = made(name, texts, seed)
    assert found == made(name, texts, seed)
    assert [one.caption for one in found] == sorted(one.caption for one in found)
    assert len({(one.caption, plain(one.text)) for one in found}) == len(found)
    for one in found:
        original = texts[one.caption]
        assert plain(one.text) != plain(original)
        assert one.type in CONFIGS[name].types
        if name != "replace":
            assert bag(one.text) == bag(original)
    for index, text in enumerate(texts):  # other captions change nothing
        alone = [(one.text, one.type) for one in made(name, [text], seed)]
        assert alone == [(one.text, one.type) for one in found if one.caption == index]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("text", ["", " ", "!", "zebra" * 2, "ok.", "…", "no no no", "火"])
def test_what_cannot_be_changed_gets_none_and_a_reason(name, text):
    reasons = {}
    assert made(name, [text], missed=reasons.__setitem__) == []
    assert reasons[0]


@pytest.mark.parametrize("name", RULES)
def test_seeds_differ(name):
    assert made(name, COCO, 0) != made(name, COCO, 1)


def test_types_and_counts_are_as_asked():
    found = made("shuffle", COCO, config=shuffle.Config(types=("bigrams",), per_type=2))
    assert Counter(one.type for one in found) == {"bigrams": 2 * len(COCO)}
    assert (
        max(
            Counter(
                one.caption for one in made("swap", COCO, config=swap.Config(types=("noun",), tagger="own"))
            ).values()
        )
        == 1
    )


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("wrong", [{"per_type": 0}, {"types": []}, {"types": ["verbs"]}, {"colour": 1}])
def test_settings_are_checked(name, wrong):
    with pytest.raises(CompalError):
        from_dict(RULES[name].Config, wrong)


# --- golden cases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "negatives"),
    [
        ("noun", "A person riding on an elephant.", {"An elephant riding on a person."}),
        ("noun", "A dog and a cat.", set()),  # the same when turned round
        ("noun", "A red dog and a blue cat.", {"A red cat and a blue dog."}),
        ("noun", "Two men feed a horse.", set()),  # singular with singular
        ("noun", "A man holding a man.", set()),
        ("phrase", "A group of people on a bench.", {"A bench on a group of people."}),
        ("phrase", "a dog next to a cat", set()),
        (
            "phrase",
            "The old man is watching TV with an orange cat.",
            {"An orange cat is watching TV with the old man."},
        ),
        ("adjective", "Blue bathroom with white towels.", {"White bathroom with blue towels."}),
        ("adjective", "An orange bus and a red car.", {"A red bus and an orange car."}),
        ("adjective", "A red and green bucket.", set()),  # of one thing
        ("adjective", "Two dogs and three cats.", {"Three dogs and two cats."}),
        ("noun", "A MAN FEEDS A HORSE.", {"A HORSE FEEDS A MAN."}),
    ],
)
def test_swap(kind, text, negatives):
    config = swap.Config(types=(kind,), per_type=5, tagger="own")
    assert {one.text for one in made("swap", [text], config=config)} == negatives


def test_phrases_of_three_words_are_negclips():
    text = "A dog with a red ball sees the small child."
    long = swap.Config(types=("phrase",), per_type=9, phrase_words=3, tagger="own")
    assert [one.detail for one in made("swap", [text], config=long)] == ["a red ball ↔ the small child"]
    assert (
        len(made("swap", [text], config=swap.Config(types=("phrase",), per_type=9, tagger="own"))) == 2
    )  # "a dog with a ball" is symmetric


@pytest.mark.parametrize(
    ("kind", "text", "word", "among"),
    [
        ("noun", "Two dogs sleep.", "dogs", {"cats", "rabbits", "birds", "hamsters", "turtles", "lizards"}),
        ("noun", "An elephant eats.", "elephant", {"giraffe", "zebra", "camel", "horse", "bike", "skateboard"}),
        ("noun", "A Woman runs.", "Woman", {"Man"}),
        ("noun", "Some knives are sharp.", "knives", {"forks", "spoons", "spatulas", "ladles", "whisks"}),
        ("adjective", "a tall tree", "tall", {"short"}),
        ("adjective", "The street is wet.", "wet", {"dry"}),
        ("preposition", "A cup with a spoon.", "with", {"without"}),
        ("noun", "A group of things.", "", set()),  # says nothing
        ("preposition", "He turns it on.", "", set()),  # no preposition
        ("noun", "a man and a woman", "", set()),  # "a woman and a woman"
    ],
)
def test_replace(kind, text, word, among):
    config = replace.Config(types=(kind,), tagger="own", lexicon="own")
    for seed in range(12):
        found = made("replace", [text], seed, config)
        if not among:
            assert found == []
            continue
        (one,) = found
        changed = set(one.text.replace(".", "").split()) - set(text.replace(".", "").split()) - {"A", "An", "a", "an"}
        assert word not in one.text.replace(".", "").split()
        assert len(changed) == 1
        assert changed <= among or (kind == "noun" and text.startswith("An ")), one.text
        assert wrong_articles(one.text) == 0


def test_shuffles_keep_what_they_say():
    text = "A small dog sits on the green couch, looking at a cat."
    for one in made("shuffle", [text]):
        words, before = one.text.replace(",", "").rstrip(".").split(), text.replace(",", "").rstrip(".").split()
        assert one.text.endswith(".")
        assert one.text[0].isupper()
        if one.type == "within-trigrams":
            for start in range(0, len(before), 3):
                assert bag(" ".join(words[start : start + 3])) == bag(" ".join(before[start : start + 3]))
        if one.type == "nouns-adjectives":
            assert [words[place] for place in (2 + 1, 4, 5)] == ["sits", "on", "the"]


def test_real_captions_get_negatives_of_sound_grammar():
    """On 5,000 captions of COCO swap reached 82 % and replace 99 %."""
    texts = list(dict.fromkeys([*COCO, *SUGARCREPE]))
    for name, share in (("swap", 0.6), ("replace", 0.95), ("shuffle", 1.0)):
        found = made(name, texts)
        assert len({one.caption for one in found}) >= share * len(texts), name
        if name != "shuffle":
            assert all(wrong_articles(one.text) <= wrong_articles(texts[one.caption]) for one in found)


# --- words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "article"),
    [
        *((word, "an") for word in ("apple", "hour", "umbrella", "onion", "unfinished", "SUV", "heirloom")),
        *((word, "a") for word in ("dog", "unicorn", "one-way", "uniform", "TV", "UFO", "European", "ukulele")),
    ],
)
def test_articles(word, article):
    assert wanted_article(word) == article
    wrong = {"a": "an", "an": "a"}[article]
    assert correct_articles(f"See {wrong} {word}.", [(0, 99)]) == f"See {article} {word}."


@pytest.mark.parametrize(("word", "plural"), [("box", "boxes"), ("puppy", "puppies"), ("toy", "toys")])
def test_plurals(word, plural):
    assert plural_of(word) == plural


def test_the_lexicon_holds_together():
    """Peers are words of the lexicon, of the same number, and never synonyms in both directions."""
    known = lexicon()
    assert len({lemma for _, lemma in known.nouns.values()}) > 500
    assert len(known.prepositions) > 70
    for (word, number), found in known.noun_peers.items():
        for one in found:
            assert one.word in known.nouns, one
            assert one.word != word or number == "plural"
            assert one.weight > 0
    for table in (known.opposites, known.prepositions):
        for word, found in table.items():
            assert word not in {one.word for one in found}
            assert all(one.word in table and one.weight > 0 for one in found)
    assert {"near", "close to"}.isdisjoint(one.word for one in known.prepositions["by"])


def test_spacys_tags_are_read():
    """On a document made by hand: no model can be had without a network."""
    import spacy
    from spacy.tokens import Doc

    words = ["Two", "dogs", "sleep", "next", "to", "a", "red", "fire", "hydrant", "."]
    doc = Doc(
        spacy.blank("en").vocab, words, [True] * 8 + [False, False],
        pos=["NUM", "NOUN", "VERB", "ADV", "ADP", "DET", "ADJ", "NOUN", "NOUN", "PUNCT"],
        tags=["CD", "NNS", "VBP", "RB", "IN", "DT", "JJ", "NN", "NN", "."],
        deps=["nummod", "nsubj", "ROOT", "advmod", "prep", "det", "amod", "compound", "pobj", "punct"],
        heads=[1, 2, 2, 2, 3, 8, 8, 8, 4, 2],
    )  # fmt: skip
    tagged = _tagger.from_spacy(doc)
    assert [(unit.text, unit.tag) for unit in tagged.units if unit.tag != "other"] == [
        ("Two", "number"), ("dogs", "noun"), ("sleep", "verb"), ("next to", "preposition"), ("a", "determiner"),
        ("red", "adjective"), ("fire hydrant", "noun"),
    ]  # fmt: skip
    assert tagged.units[1].number == "plural"
    assert [tagged.units[chunk.last].lemma for chunk in tagged.chunks] == ["dog", "fire hydrant"]


def test_a_missing_spacy_model_is_named():
    with pytest.raises(InputError, match=r"no_such_model is not installed.*spacy download no_such_model"):
        list(_tagger.tag_all(["a"], "spacy", "no_such_model"))
    assert _tagger.version("auto", "no_such_model") == f"own {lexicon().version}"


# --- WordNet ---------------------------------------------------------------------------------------------

SYNSETS = {  # name: (part of speech, words, pointers (symbol, synset, word numbers source and target))
    "animal": ("n", ["animal"], []),
    "dog_kind": ("n", ["canine"], [("@", "animal", "0000")]),
    "cat_kind": ("n", ["feline"], [("@", "animal", "0000")]),
    "dog": ("n", ["dog", "hound"], [("@", "dog_kind", "0000")]),
    "wolf": ("n", ["wolf"], [("@", "dog_kind", "0000")]),
    "cat": ("n", ["cat"], [("@", "cat_kind", "0000")]),
    "lion": ("n", ["lion"], [("@", "cat_kind", "0000")]),
    "mutt": ("n", ["mutt"], [("@", "dog", "0000")]),
    "caracal": ("n", ["caracal"], [("@", "cat_kind", "0000")]),
    "colour": ("n", ["colour"], []),
    "red_n": ("n", ["red"], [("@", "colour", "0000"), ("+", "red_a", "0101")]),
    "blue_n": ("n", ["blue"], [("@", "colour", "0000")]),
    "red_a": ("a", ["red"], [("+", "red_n", "0101")]),
    "blue_a": ("a", ["blue"], []),
    "wet": ("a", ["wet"], [("!", "dry", "0101"), ("&", "soaked", "0000")]),
    "dry": ("a", ["dry"], [("!", "wet", "0101")]),
    "soaked": ("s", ["soaked"], [("&", "wet", "0000")]),
}
COUNTS = {"dog": 42, "wolf": 8, "cat": 18, "lion": 3, "hound": 1, "blue": 5, "red": 9, "mutt": 2}
INVERSE = {"@": "~"}


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    """A WordNet of 17 synsets in Princeton's file format, read by nltk's own reader."""
    folder = tmp_path_factory.mktemp("wordnet")
    pointers = {name: list(found) for name, (_, _, found) in SYNSETS.items()}
    for name, (_, _, found) in SYNSETS.items():
        for symbol, target, words in found:
            if symbol in INVERSE:
                pointers[target].append((INVERSE[symbol], name, words))
    files = {"n": "noun", "a": "adj", "s": "adj", "v": "verb", "r": "adv"}
    header = "  1 WordNet 3.0 Copyright 2006 by nobody; made for a test\n"

    def line(name, offsets):
        pos, words, _ = SYNSETS[name]
        listed = " ".join(f"{word} 0" for word in words)
        links = "".join(
            f" {symbol} {offsets[to]:08d} {SYNSETS[to][0]} {places}" for symbol, to, places in pointers[name]
        )
        return f"{offsets[name]:08d} 00 {pos} {len(words):02x} {listed} {len(pointers[name]):03d}{links} | made  \n"

    offsets = dict.fromkeys(SYNSETS, 0)
    for file in set(files.values()):
        at = len(header)
        for name in (name for name in SYNSETS if files[SYNSETS[name][0]] == file):
            offsets[name] = at
            at += len(line(name, offsets))
    for file in set(files.values()):
        own = [name for name in SYNSETS if files[SYNSETS[name][0]] == file]
        (folder / f"data.{file}").write_text(header + "".join(line(name, offsets) for name in own))
        index: dict[str, list[str]] = {}
        for name in own:
            for word in SYNSETS[name][1]:
                index.setdefault(word, []).append(name)
        rows = [
            f"{word} {file[0]} {len(names)} 0 {len(names)} 0 {' '.join(f'{offsets[one]:08d}' for one in names)}  \n"
            for word, names in sorted(index.items())
        ]
        (folder / f"index.{file}").write_text(header + "".join(rows))
        (folder / f"{file}.exc").write_text("wolves wolf\n" if file == "noun" else "")
    (folder / "lexnames").write_text("00\tnoun.Tops\t3\n")
    (folder / "index.sense").write_text("")
    numbers = {"n": 1, "a": 3}
    rows = [
        f"{word}%{numbers[pos]}:00:00:: 1 {COUNTS[word]}\n"
        for pos, words, _ in SYNSETS.values() if pos in numbers
        for word in words if word in COUNTS
    ]  # fmt: skip
    (folder / "cntlist.rev").write_text("".join(sorted(set(rows))))
    return folder


def test_wordnets_cousins_are_drawn_by_their_counts(wordnet):
    reader = _wordnet.reader("wordnet", str(wordnet))
    assert _wordnet.version(reader).startswith("WordNet 3.0 (nltk ")
    found = {one.word: one.weight for one in _wordnet.nouns(reader, "dog")}
    assert found == {"wolf": 8.0, "cat": 18.0, "lion": 3.0}  # no hound (a synonym), no mutt (a dog), no caracal
    assert {one.word for one in _wordnet.nouns(reader, "dog", least=0)} == {*found, "caracal"}
    assert _wordnet.nouns(reader, "xylophone") == ()


def test_wordnets_adjectives_are_opposites_and_cousins_as_nouns(wordnet):
    reader = _wordnet.reader("wordnet", str(wordnet))
    assert [(one.word, one.why) for one in _wordnet.adjectives(reader, "wet")] == [("dry", "antonym")]
    assert [one.word for one in _wordnet.adjectives(reader, "soaked")] == ["dry"]
    assert [(one.word, one.why) for one in _wordnet.adjectives(reader, "red")] == [("blue", "co-hyponym")]


def test_replace_by_wordnet_keeps_number_and_names_its_source(wordnet):
    config = replace.Config(types=("noun",), lexicon="wordnet", wordnet_folder=str(wordnet), tagger="own")
    texts = {one.text for seed in range(20) for one in made("replace", ["Two Dogs bark."], seed, config)}
    assert texts == {"Two Wolves bark.", "Two Cats bark.", "Two Lions bark."}
    assert replace.provenance(config, around())["lexicon"].startswith("WordNet 3.0")
    own = replace.provenance(replace.Config(lexicon="own", tagger="own"), around())
    assert own == {"tagger": f"own {lexicon().version}", "lexicon": f"own {lexicon().version}"}


def test_a_missing_wordnet_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no WordNet in .*data\.noun.*lexicon=own"):
        _wordnet.reader("wordnet", str(tmp_path))


# --- neighbours ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mined_store(tmp_path_factory):
    """A store of captions whose pooled embeddings lie on a circle, one degree apart."""
    from compal.stores.spec import FeatureSpec
    from compal.stores.store import Store, TextRows

    texts = ["A red dog sits.", "a red dog sits", "Two cats sleep on a couch.", "A bus stops.", "A train leaves town."]
    angle = np.radians(np.arange(len(texts)))
    pooled = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float16)
    spec = FeatureSpec("made", "test", pooled_dim=2, level="pooled")
    store = Store.create(tmp_path_factory.mktemp("stores") / spec.folder, spec)
    rows = TextRows([caption_key(text) for text in texts], texts, [""] * len(texts), None, pooled)
    return store, texts, rows


@pytest.fixture(scope="module")
def circle(mined_store):
    store, texts, rows = mined_store
    store.write_texts("t-0", rows)
    store.commit(["t-0"])
    images = (("i0",), ("i1",), ("i2",), ("i2",), ("i3",))
    return store.path, [Caption(caption_key(text), text, own) for text, own in zip(texts, images, strict=True)]


@pytest.mark.parametrize("index", ["flat", "ivf"])
def test_the_nearest_of_another_image_is_taken(circle, index):
    path, some = circle
    config = mined.Config(store=str(path), index=index)
    found = {some[one.caption].text: one.text for one in mined.generate(some, config, 0, around())}
    assert found == {
        "A red dog sits.": "Two cats sleep on a couch.",  # not its equal
        "a red dog sits": "Two cats sleep on a couch.",
        "Two cats sleep on a couch.": "a red dog sits",  # not the bus, which is in its image
        "A bus stops.": "A train leaves town.",
        "A train leaves town.": "A bus stops.",
    }


def test_neighbours_agree_with_plain_numpy(circle):
    path, some = circle
    from compal.stores.store import Store

    vectors = Store.open(path).pooled("text", [one.key for one in some]).astype(np.float32)
    for one in mined.generate(some, mined.Config(store=str(path), per_caption=3), 0, around()):
        cosine = vectors @ vectors[one.caption] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[one.caption])
        other = [caption.text for caption in some].index(one.text)
        assert one.detail == f"cosine {cosine[other]:.3f}"


def test_neighbours_need_features(circle, tmp_path):
    path, some = circle
    with pytest.raises(MissingFeatures, match="lacks 1 of 6 captions"):
        list(mined.generate([*some, *captions("new")], mined.Config(store=str(path)), 0, around()))
    with pytest.raises(UsageError, match="needs a backbone"):
        list(mined.generate(some, mined.Config(), 0, around()))
    with pytest.raises(MissingFeatures, match="compal extract --backbone shapes-vit"):
        list(mined.generate(some, mined.Config(backbone="shapes-vit"), 0, around(path=tmp_path)))
    reasons = {}
    assert list(mined.generate(some[:1], mined.Config(store=str(path)), 0, around(reasons.__setitem__))) == []
    assert reasons == {0: "the dataset has no other caption"}


# --- the registry ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.names("negatives"))
def test_every_method_keeps_the_contract(name):
    method = registry.load("negatives", name)
    assert {"source", "version", "licence"} <= set(method.INFO)
    needed = {"llm": {"model": "m"}}
    assert from_dict(method.Config, needed.get(name, {})) == from_dict(method.Config, needed.get(name, {}))
    with pytest.raises(UnknownName):
        from_dict(method.Config, {**needed.get(name, {}), "no_such_setting": 1})


def test_the_libraries_of_the_tests_are_here():
    for library in ("faiss", "nltk", "spacy", "openai"):
        assert importlib.util.find_spec(library), library
