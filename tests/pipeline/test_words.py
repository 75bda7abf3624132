import pytest
import torch

from compal.pipeline.words import WordTokenizer

TOKENIZER = WordTokenizer(["a", "red", "cube", "."], context_length=8)


def test_ids_start_words_end_padding():
    assert TOKENIZER(["A Red  cube.", ""]).tolist() == [[1, 3, 4, 5, 6, 7, 0, 0], [1, 7, 0, 0, 0, 0, 0, 0]]
    assert TOKENIZER("red").dtype == torch.int64


def test_the_end_has_the_highest_id():
    assert TOKENIZER.end == TOKENIZER.vocab_size - 1
    ids = TOKENIZER(["a red cube.", "red"])
    assert ids.argmax(dim=1).tolist() == [5, 2]


def test_unknown_words_are_named():
    assert TOKENIZER(["a blue cube"]).tolist()[0][:5] == [1, 3, 2, 5, 7]
    assert TOKENIZER.unknown("a blue Cube!") == ["blue", "!"]


def test_spans_point_at_the_words_as_written():
    text = " A  Red\tcubé 12."
    spans = TOKENIZER.spans(text)
    assert spans[0] == spans[-1] == (-1, -1)
    assert [text[start:end] for start, end in spans[1:-1]] == ["A", "Red", "cub", "é", "12", "."]


def test_a_long_caption_is_cut_and_says_so():
    text = "a red cube . a red cube ."
    assert TOKENIZER(text).tolist() == [[1, 3, 4, 5, 6, 3, 4, 7]]
    assert len(TOKENIZER.spans(text)) == 8
    assert TOKENIZER.truncated(text)
    assert not TOKENIZER.truncated("a red cube . a red")


def test_words_must_be_distinct_and_the_context_have_room():
    with pytest.raises(ValueError, match="distinct"):
        WordTokenizer(["a", "a"], 8)
    with pytest.raises(ValueError, match="no room"):
        WordTokenizer(["a"], 1)
