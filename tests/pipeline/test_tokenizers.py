import re
from concurrent.futures import ThreadPoolExecutor

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import get_clean_fn

from compal.errors import InputError
from compal.pipeline.spans import NO_SPAN
from compal.pipeline.tokenizers import BytePairs, HubTokenizer, Words, frame, from_bytes, to_bytes
from compal.pipeline.words import WordTokenizer

CLIP = open_clip.SimpleTokenizer()
BYTE_PAIRS = BytePairs(CLIP)


def pieces(tokenizer, text):
    """The passages that the tokens of a caption came from."""
    batch = tokenizer([text])
    assert batch.spans[0][0] == batch.spans[0][-1] == NO_SPAN
    return [text[start:end] for start, end in batch.spans[0][1:-1]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red cube left of a blue ball", ["a", "red", "cube", "left", "of", "a", "blue", "ball"]),
        ("A cat,  a CAT; a cat!", ["A", "cat", ",", "a", "CAT", ";", "a", "cat", "!"]),
        ("the dog's 42 toys", ["the", "dog", "'s", "4", "2", "toys"]),
        ("unbelievableness", ["unbeliev", "ab", "leness"]),
        ("salt &amp; pepper", ["salt", "&amp;", "pepper"]),
        ("it’s “here”", ["it", "’s", "“", "here", "”"]),
        ("naïve café", ["na", "ï", "ve", "café"]),
        ("a 🐈 sleeps", ["a", "🐈", "🐈", "sleeps"]),  # four bytes in two tokens
        ("狗 dog", ["狗", "狗", "狗", "dog"]),  # three bytes, three tokens
        ("!!!", ["!!!"]),
        ("", []),
    ],
)
def test_byte_pairs_say_where_they_came_from(text, expected):
    assert pieces(BYTE_PAIRS, text) == expected


@given(st.lists(st.text(max_size=30), min_size=1, max_size=3))
@settings(max_examples=80)
def test_byte_pair_ids_lengths_and_spans_agree_for_any_text(captions):
    batch = BYTE_PAIRS(captions)
    assert torch.equal(batch.ids, CLIP(captions))
    for ids, length, spans, caption in zip(batch.ids, batch.lengths, batch.spans, captions, strict=True):
        assert len(spans) == length
        assert ids[0] == CLIP.sot_token_id
        assert ids[length - 1] == CLIP.eot_token_id
        assert not ids[length:].any()
        assert all(0 <= start < end <= len(caption) for start, end in spans[1:-1])


def test_a_long_caption_is_cut_at_the_context_and_says_so():
    longest = " ".join(["cube"] * 75)
    batch = BYTE_PAIRS([longest, longest + " cube", "cube"])
    assert batch.lengths == [77, 77, 3]
    assert batch.truncated == [False, True, False]
    assert torch.equal(batch.ids[0], batch.ids[1])
    assert batch.spans[0] == batch.spans[1]


def test_words_say_where_they_came_from():
    tokenizer = Words(WordTokenizer(["red", "cube"], 5))
    assert pieces(tokenizer, " Red  Cube") == ["Red", "Cube"]
    batch = tokenizer(["red cube red cube", "red"])
    assert batch.lengths == [5, 3]
    assert batch.truncated == [True, False]
    assert tokenizer.size == 6


class Fast:
    """A Hugging Face tokenizer as open_clip calls it: one id a word with the space before it, an end, no start."""

    is_fast = True

    def __len__(self):
        return 100

    def __call__(self, texts, truncation, padding, max_length=None, return_offsets_mapping=False, **_):
        rows, offsets = [], []
        for text in texts:
            found = list(re.finditer(r" ?\S+", text))
            if truncation:
                found = found[: max_length - 1]
            rows.append([2 + len(word[0]) for word in found] + [1])
            offsets.append([word.span() for word in found] + [(0, 0)])
        return {"input_ids": rows, "offset_mapping": offsets} if return_offsets_mapping else {"input_ids": rows}


class Hub:
    """open_clip's wrapper of it."""

    tokenizer_mode = ""
    clean_fn = staticmethod(get_clean_fn("canonicalize"))

    def __init__(self, fast=True):
        self.tokenizer = Fast()
        self.tokenizer.is_fast = fast

    def __call__(self, texts):
        cleaned = [self.clean_fn(text) for text in texts]
        rows = self.tokenizer(cleaned, truncation=True, padding="max_length", max_length=6)["input_ids"]
        return torch.tensor([row + [0] * (6 - len(row)) for row in rows])


def test_hub_tokenizers_report_characters_of_the_caption_as_written():
    text = "A Red, (red)  cube!"
    batch = HubTokenizer(Hub())([text, "one two three four five six"])
    assert [text[start:end] for start, end in batch.spans[0][:-1]] == ["A", "Red", "red", "cube"]
    assert batch.spans[0][-1] == NO_SPAN
    assert batch.lengths == [5, 6]
    assert batch.truncated == [False, True]
    assert batch.ids.shape == (2, 6)


def test_hub_tokenizers_without_offsets_leave_spans_unknown():
    batch = HubTokenizer(Hub(fast=False))(["a red cube"])
    assert batch.spans == [[NO_SPAN] * 4]


def test_a_tokenizer_mode_is_refused():
    hub = Hub()
    hub.tokenizer_mode = "clips"
    with pytest.raises(InputError, match="clips"):
        HubTokenizer(hub)


def test_ready_made_ids_are_valid_as_long_as_they_say():
    ids = torch.tensor([[5, 6, 0], [5, 6, 7]])
    assert frame(ids).lengths == [3, 3]
    assert frame(ids, [2, 3]).spans == [[NO_SPAN] * 2, [NO_SPAN] * 3]


def rust_tokenizer(context):
    """A real tokenizer of the Hugging Face library, written in Rust, as open_clip wraps it; no download."""
    from open_clip.tokenizer import HFTokenizer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", "a", "red", "cube", "not", "blue"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.normalizer = normalizers.Lowercase()
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    wrapped = HFTokenizer.__new__(HFTokenizer)
    wrapped.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    wrapped.clean_fn, wrapped.context_length = get_clean_fn("canonicalize"), context
    wrapped.strip_sep_token, wrapped.tokenizer_mode = False, ""
    return HubTokenizer(wrapped)


def test_a_rust_tokenizer_may_be_shared_by_threads():
    """Its truncation is a state: unguarded, threads meet 'Already borrowed' or cut at each other's lengths."""
    tokenizer = rust_tokenizer(8)
    captions = [["a red cube " * (row % 5 + 1), "not a blue cube"] for row in range(60)]
    alone = [tokenizer(pair) for pair in captions]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(tokenizer, captions))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.ids, other.ids)
        assert one[1:] == other[1:]
    assert alone[2].truncated == [True, False]
    assert alone[2].lengths == [8, 5]


@pytest.mark.parametrize(
    ("tokenizer", "same", "apart"),
    [
        (BYTE_PAIRS, [("A Red CUBE", "a red cube"), ("a  red cube", "a red cube")], [("red cube!", "red cube")]),
        (
            rust_tokenizer(8),
            [("A Red, CUBE!", "a red cube"), ("a red\tcube", "a red cube")],
            [("a not red cube", "a red cube")],
        ),
    ],
    ids=["CLIP: lower case, punctuation kept", "SigLIP: canonical, punctuation gone"],
)
def test_case_and_punctuation(tokenizer, same, apart):
    for one, other in same:
        assert torch.equal(tokenizer([one]).ids, tokenizer([other]).ids)
        spans = tokenizer([one]).spans[0]
        assert [one[start:end].lower() for start, end in spans if end > start] == other.split()
    for one, other in apart:
        assert not torch.equal(tokenizer([one]).ids, tokenizer([other]).ids)


def test_ids_are_four_bytes_and_come_back():
    ids = torch.tensor([0, 1, 49407, 901_628, 2**31 - 1])
    rows = to_bytes(ids)
    assert (rows.dtype, tuple(rows.shape)) == (torch.uint8, (5, 4))
    assert rows[2].tolist() == [0xFF, 0xC0, 0, 0]
    assert torch.equal(from_bytes(rows), ids)
    assert from_bytes(to_bytes(ids[:0])).tolist() == []
