import string
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_clip.tokenizer import canonicalize_text, get_clean_fn

from compal.pipeline.spans import NO_SPAN, align, join, lowered_with_origin

LOWER, CANONICAL, PLAIN = (get_clean_fn(name) for name in ("lower", "canonicalize", "whitespace"))


def words_of(original, clean):
    """Each word of the cleaned text with the passage of the original that it is said to come from."""
    cleaned = clean(original)
    places = align(original, cleaned)
    assert len(places) == len(cleaned)
    found, start = [], 0
    for word in cleaned.split(" "):
        begin, end = join(places, start, start + len(word))
        found.append((word, original[begin:end]))
        start += len(word) + 1
    return found


@pytest.mark.parametrize(
    ("original", "clean", "expected"),
    [
        ("A Red  cube", LOWER, [("a", "A"), ("red", "Red"), ("cube", "cube")]),
        ("  a\tcat,\n a cat ", LOWER, [("a", "a"), ("cat,", "cat,"), ("a", "a"), ("cat", "cat")]),
        ("The cat (The cat).", CANONICAL, [("the", "The"), ("cat", "cat"), ("the", "The"), ("cat", "cat")]),
        ("left_of -- the ball!", CANONICAL, [("left", "left"), ("of", "of"), ("the", "the"), ("ball", "ball")]),
        ("Zebra's Eye", PLAIN, [("Zebra's", "Zebra's"), ("Eye", "Eye")]),
        ("a &amp; b &amp; c", LOWER, [("a", "a"), ("&", "&amp;"), ("b", "b"), ("&", "&amp;"), ("c", "c")]),
        ("the dog’s “toy”", LOWER, [("the", "the"), ("dog's", "dog’s"), ('"toy"', "“toy”")]),
        ("a cafÃ© in Paris", LOWER, [("a", "a"), ("café", "cafÃ©"), ("in", "in"), ("paris", "Paris")]),
        ("ﬁne ﬁsh", LOWER, [("fine", "ﬁne"), ("fish", "ﬁsh")]),
        ("İki ΑΣ dogs", LOWER, [("i̇ki", "İki"), ("ας", "ΑΣ"), ("dogs", "dogs")]),
    ],
)  # fmt: skip
def test_words_map_to_where_they_stand(original, clean, expected):
    assert words_of(original, clean) == expected


@given(st.lists(st.sampled_from(["red", "cube", "Cube,", "a", "(the)", "ball!", "É", "10"]), min_size=1, max_size=12),
       st.sampled_from([" ", "  ", "\t ", " \n"]))  # fmt: skip
def test_repeated_words_and_white_space_are_followed_exactly(words, gap):
    original = gap.join(words)
    assert [place for _, place in words_of(original, LOWER)] == words


@given(st.text(max_size=40), st.sampled_from([LOWER, CANONICAL, PLAIN]))
def test_any_text_gets_places_inside_it_in_order(original, clean):
    cleaned = clean(original)
    places = align(original, cleaned)
    assert len(places) == len(cleaned)
    assert all(0 <= start < end <= len(original) for start, end in places)
    assert all(before[0] <= after[0] for before, after in pairwise(places))


@given(st.text(alphabet=string.ascii_letters + string.punctuation + " \t", max_size=40))
def test_what_is_kept_of_plain_text_is_the_same_character(original):
    cleaned = canonicalize_text(original)
    for letter, (start, end) in zip(cleaned, align(original, cleaned), strict=True):
        place = original[start:end]
        assert place.lower() == letter or (letter == " " and (place.isspace() or place == "_"))


def test_lower_casing_that_lengthens_keeps_origins():
    assert lowered_with_origin("aİb") == ("ai̇b", [0, 1, 1, 2])


def test_nothing_joins_to_no_span():
    assert join([(0, 1)], 0, 0) == NO_SPAN
