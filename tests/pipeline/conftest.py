import json

import pytest

VIT = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
TEXT = {"vocab_size": 49408, "context_length": 77, "width": 16, "heads": 2, "layers": 1}


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The configuration of two small models that open_clip then knows by name: `small` and `small-quickgelu`."""
    import open_clip

    config = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT}
    folder = tmp_path_factory.mktemp("configurations")
    (folder / "small.json").write_text(json.dumps(config))
    (folder / "small-quickgelu.json").write_text(json.dumps({**config, "quick_gelu": True}))
    open_clip.add_model_config(folder)
    return config


@pytest.fixture
def photograph():
    """A function of a seed and a (width, height): noise as an RGB image."""
    import numpy as np
    from PIL import Image

    def make(seed=0, size=(90, 70)):
        values = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return Image.fromarray(values)

    return make
