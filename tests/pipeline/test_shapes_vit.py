"""shapes-vit: the shipped encoder, and one from a folder as the training run leaves it."""

import json
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from compal.errors import InputError, SpecMismatch
from compal.pipeline.encoder import load_encoder, resolve


def one_line(error):
    return "\n" not in str(error.value)


WORDS = ["a", "red", "blue", "cube", "ball", "left", "of", "."]


@pytest.fixture
def assets(tmp_path):
    """A folder as the training run leaves it."""
    folder = tmp_path / "trained"
    folder.mkdir()
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
        "text_cfg": {"vocab_size": len(WORDS) + 4, "context_length": 12, "width": 32, "heads": 2, "layers": 1},
        "words": WORDS,
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_shapes_vit_from_a_folder(assets, photograph):
    spec = resolve(f"shapes-vit:{assets}")
    assert (spec.image_shape, spec.image_grid, spec.text_dim, spec.pooled_dim) == ((65, 32), (8, 8), 32, 24)
    encoder = load_encoder(spec)
    image = photograph(size=(64, 64))
    expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(encoder.scaled(encoder.preprocess(image)), expected, atol=1e-6, rtol=0)
    assert encoder.preprocess(photograph()).shape == (3, 64, 64)
    captions = ["a red cube left of a blue ball .", "a wug", "a " * 20]
    texts = encoder.encode_texts(captions)
    own = encoder.model.encode_text(encoder.tokenizer(captions).ids)
    torch.testing.assert_close(encoder.pool_texts(texts.tokens, texts.pool_index), own, atol=1e-5, rtol=0)
    assert [len(tokens) for tokens in texts.tokens] == [11, 4, 12]
    assert texts.truncated == [False, False, True]


def test_the_shapes_vit_spec_follows_weights_and_configuration(assets):
    first = resolve(f"shapes-vit:{assets}")
    config = json.loads((assets / "config.json").read_text())
    config["words"] = config["words"][::-1]
    (assets / "config.json").write_text(json.dumps(config))
    assert resolve(f"shapes-vit:{assets}").fingerprint != first.fingerprint
    with pytest.raises(SpecMismatch):
        load_encoder(first)


def test_shapes_vit_with_byte_pairs(assets):
    config = json.loads((assets / "config.json").read_text())
    del config["words"]
    config["text_cfg"]["vocab_size"] = 49408
    model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    save_file(model.state_dict(), assets / "model.safetensors")
    (assets / "config.json").write_text(json.dumps(config))
    spec = resolve(f"shapes-vit:{assets}")
    assert spec.tokenizer["name"] == "open_clip.SimpleTokenizer"
    assert load_encoder(spec).encode_texts(["a red cube"]).pool_index == [4]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"words": WORDS[:-1]}, "words"),
        ({"embed_dim": 25}, "does not fit"),
        ({"embed_dim": "many"}, "no open_clip model configuration"),
        ({"vision_cfg": {"width": 3}}, "no open_clip model configuration"),
    ],
)
def test_a_shapes_vit_folder_that_does_not_fit_itself(assets, change, match):
    config = {**json.loads((assets / "config.json").read_text()), **change}
    (assets / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=match) as found:
        load_encoder(resolve(f"shapes-vit:{assets}"))
    assert one_line(found)


def test_shapes_vit_specs_need_no_torch(assets):
    code = (
        f"import sys; from compal.pipeline.encoder import resolve; resolve('shapes-vit:{assets}'); resolve('random'); "
        "assert not {'torch', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_shipped_shapes_vit_loads(photograph):
    encoder = load_encoder(resolve("shapes-vit"))
    assert encoder.preprocess(photograph(size=(64, 64))).shape == (3, 64, 64)
    assert encoder.encode_texts(["a red cube"]).truncated == [False]
