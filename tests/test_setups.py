"""Published set-ups: each plans by its name, says what it comes from, and takes a step at random initialisation."""

from __future__ import annotations

import gc
import json
import re
import shlex
from functools import partial

import pytest
import torch
import typer.main
from command_line import run
from torch.nn.utils.rnn import pad_sequence

from compal import cli, registry
from compal.align import setups
from compal.align.batches import Batch
from compal.align.recipe import load_recipe
from compal.align.scorer import Dims, build_head
from compal.align.training import Training
from compal.errors import InputError, UnknownName, UsageError
from compal.pipeline import trainable
from compal.pipeline.backbones import open_clip
from compal.pipeline.encoder import load_encoder, resolve

NAMES = registry.names("setups")
every_setup = pytest.mark.parametrize("name", NAMES)
RANDOM = {  # the architectures without their weights
    "clip": "open_clip:ViT-B-32-quickgelu",
    "pe": "open_clip:PE-Core-B-16",
    "siglip2": "open_clip:ViT-B-16-SigLIP2-256",
    "open_clip:ViT-B-16-SigLIP/webli": "open_clip:ViT-B-16-SigLIP",
}
ROOTS = {"dreamlip": "dreamlip:/data/cc3m?caption=shortLLA_captions", "clic:coco": "clic:coco:/data/coco"}
HELD = {}


def encoder_of(backbone):
    """The last backbone's encoder of pixels; the set-ups come sorted by it. SigLIP's tokenizers are files of the hub
    and left out; of SigLIP 2's 256,000 embeddings of tokens 49,408 are kept, since all of them take 0.8 GB."""
    if backbone not in HELD:
        HELD.clear()  # before the next is built
        gc.collect()
        tokenizer, build = open_clip._tokenizer, open_clip._build

        def smaller(config, model):
            config["text_cfg"]["vocab_size"] = min(config["text_cfg"].get("vocab_size", 49408), 49408)
            return build(config, model)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(open_clip, "_build", smaller)
            patch.setattr(open_clip, "_tokenizer", lambda model: None if "SigLIP" in model else tokenizer(model))
            HELD[backbone] = load_encoder(resolve(backbone, "pixels"))
    return HELD[backbone]


def ids_of(encoder, texts):
    """What a store of pixels holds of captions: ids as four bytes each, of SigLIP's any that fill the context."""
    if encoder.tokenizer is not None:
        return encoder.encode_texts(texts).tokens
    shape = (len(texts), encoder.texts.context_length)
    ids = torch.randint(2, 30_000, shape, generator=torch.Generator().manual_seed(1))
    return list(ids[..., None] >> torch.tensor([0, 8, 16, 24]) & 255)


@pytest.fixture
def shared(monkeypatch, name):
    """Towers are opened on one model, whose weights are all to be trained again, and without additions, afterwards."""
    monkeypatch.setattr(trainable, "load_encoder", lambda spec, device="cpu": encoder_of(spec.backbone))
    yield
    config = load_recipe(name)
    if config.head.get("lora"):
        HELD.clear()
    elif config.level == "pixels":
        spec = resolve(RANDOM[setups.read(name).backbone], config.level)
        encoder_of(spec.backbone).model.requires_grad_(True)
    gc.collect()  # a teacher, which hooks keep alive


def by_backbone():
    return sorted(NAMES, key=lambda name: (setups.read(name).backbone, bool(load_recipe(name).head.get("lora")), name))


def computed(name):
    """All of a set-up that shapes a step on `pictures`: its tower, level, head, objective and what a batch brings."""
    told, config = setups.read(name), load_recipe(name)
    batch = (bool(config.data.phrases), bool(config.data.further))
    return json.dumps([told.backbone, config.level, config.head, config.loss, config.ema, batch], default=str)


# Of module scope, so that all that is asked of a set-up, and of a backbone, comes together.
each_backbone_once = pytest.mark.parametrize("name", by_backbone(), scope="module")
# Set-ups that differ in data, rate and schedule compute the same: the first steps for all.
each_computation_once = pytest.mark.parametrize(
    "name", list({computed(name): name for name in reversed(by_backbone())}.values())[::-1], scope="module"
)


@every_setup
def test_it_says_what_was_published(name):
    """A sentence, the command, and: the source, what is ours, what it costs, what should come out."""
    text = registry.path("setups", name).read_text(encoding="utf-8")
    comments = text[: text.index("\n\n")]
    assert all(line.startswith("#") and len(line) <= 120 for line in comments.splitlines())
    assert registry.summary("setups", name).endswith(".")
    assert f"\n# compal fit {name} --data " in comments
    for said in ("Source", "Ours", "Cost", "Expected"):
        assert len(re.findall(rf"^# {said}: ", comments, re.MULTILINE)) == 1, said
    told = setups.read(name)
    tables = set(told.settings["optim"])
    assert {"steps", "lr", "weight_decay", "betas", "schedule", "warmup"} <= tables
    assert name not in registry.names("recipes")
    registry.path("backbones", registry.split_argument(told.backbone)[0])
    registry.path("datasets", registry.split_argument(told.dataset)[0])


@every_setup
def test_what_prepares_it_are_commands(name):
    told = setups.read(name)
    command = typer.main.get_command(cli.app)
    level = load_recipe(name).level
    lines = told.commands("clip", "coco:/my data")
    for line in lines:
        first, verb, *words = shlex.split(line)
        assert (first, words[words.index("--data") + 1]) == ("compal", "coco:/my data")
        command.commands[verb].make_context(verb, words)
    *_, extraction = lines
    assert " extract " in extraction
    assert ("--level" in extraction) == (level != "tokens")
    assert level == "tokens" or f"--level {level} " in f"{extraction} "
    assert ("--phrases" in extraction) == bool(load_recipe(name).data.phrases)


@each_backbone_once
@pytest.mark.usefixtures("shared")
def test_it_plans(name, tmp_path):
    """By its name alone, and with the reader's own data and settings; nothing is written."""
    told = setups.read(name)
    data = ROOTS.get(told.dataset, f"{told.dataset}:/data/{told.dataset}")
    asked = ("fit", name, "--backbone", RANDOM[told.backbone], "--dry-run", "--json", "--work", tmp_path)
    code, out, _ = run(*asked, "--data", data, "--set", "optim.steps=3")
    plan = json.loads(out)
    assert (code, plan["recipe"], plan["steps"]) == (0, name, 3)
    assert plan["parameters"] > 200_000
    assert plan["lacks"]
    assert plan["prepare"] == list(told.commands(RANDOM[told.backbone], data))
    assert not list(tmp_path.iterdir())


def pictures(spec, config):
    """Two pictures that form a swap group, their captions, a negative of each, and what else the first one shows."""
    made = torch.Generator().manual_seed(0)
    texts = ["a cat on a mat", "a dog", "a mat on a cat", "a log", "a cat", "a mat"]
    positives = torch.eye(2, len(texts), dtype=torch.bool)
    positives[0, 4:] = True
    more = {"image_pooled": torch.randn(2, spec.pooled_dim, generator=made)}
    more["text_pooled"] = torch.randn(len(texts), spec.pooled_dim, generator=made)
    if config.level == "pixels":
        encoder = encoder_of(spec.backbone)
        height, width = spec.image_shape[0], spec.image_shape[1] // 3
        shown = torch.randint(0, 256, (2, 3, height, width), generator=made, dtype=torch.uint8)
        images = encoder.encode_images(shown).tokens.float()
        rows = ids_of(encoder, texts)
    else:
        images = torch.randn(2, *spec.image_shape, generator=made)
        rows = [torch.randn(len(text.split()) + 2, spec.text_dim, generator=made) for text in texts]
    mask = torch.arange(max(map(len, rows))) < torch.tensor([[len(row)] for row in rows])
    return Batch(
        images=images,
        image_mask=torch.ones(images.shape[:2], dtype=torch.bool),
        texts=pad_sequence([row.float() for row in rows], batch_first=True),
        text_mask=mask,
        positives=positives,
        groups=torch.tensor([[0, 1, 0, 1]]),
        pairs=torch.tensor([[0, 0], [1, 1]]),
        negatives=torch.tensor([[2], [3]]),
        phrases=torch.tensor([[4, 5], [1, -1]]) if config.data.phrases else None,
        further=torch.tensor([[4], [-1]]) if config.data.further else None,
        told=lambda columns: [texts[column] for column in columns],
        **more,
    )


def beginnings(parameters):
    return [parameter.detach().flatten()[:1000].clone() for parameter in parameters]


@each_computation_once
@pytest.mark.usefixtures("shared")
def test_it_takes_a_step(name):
    """With its own head, objective and rate, a random tower of its architecture and two pictures; after it the loss is
    finite still. Contracts take each recipe further."""
    config = load_recipe(name)
    if "decoder" in config.loss:
        config = load_recipe(name, ["loss.decoder=random"])
    spec = resolve(RANDOM[setups.read(name).backbone], config.level)
    batch = pictures(spec, config)
    options = dict(config.head)
    torch.manual_seed(config.seed)
    towers = partial(trainable.open_towers, spec) if config.level == "pixels" else None
    model = Training(build_head(options.pop("name"), options, Dims.of(spec), towers), config.loss, ema=config.ema)
    weights = [parameter for parameter in model.scorer.parameters() if parameter.requires_grad]
    before = beginnings(weights)

    def step(parameter):
        """At once, so that one gradient is held and not all of them, nor Adam's moments."""
        assert parameter.grad.isfinite().all()
        with torch.no_grad():
            parameter.add_(parameter.grad.sign_(), alpha=-config.optim.lr)
        parameter.grad = None

    hooks = [one.register_post_accumulate_grad_hook(step) for one in model.parameters() if one.requires_grad]
    for _ in range(2 if config.head.get("lora") else 1):  # half of its matrices have no gradient while the others are 0
        loss = model(batch)
        loss.backward()
        model.follow()
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        after = model(batch)
    assert loss.isfinite()
    assert after.isfinite()
    moved = sum(not torch.equal(*both) for both in zip(before, beginnings(weights), strict=True))
    assert moved > len(weights) / 2


def test_a_set_up_stands_above_its_recipe(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('recipe = "degla"\nbackbone = "clip"\ndataset = "coco"\n[optim]\nlr = 3e-6\n')
    config, recipe = load_recipe(str(mine), ["optim.steps=7"]), load_recipe("degla")
    assert (config.optim.lr, config.optim.steps, config.optim.betas) == (3e-6, 7, recipe.optim.betas)
    assert (config.loss, config.ema, config.data) == (recipe.loss, recipe.ema, recipe.data)
    assert setups.read("degla").prepare == ()
    assert setups.read(str(mine)).commands("clip", "coco") == ()


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ('recipe = "degla"\ndataset = "coco"', UsageError, "lacks a recipe, a backbone or a dataset"),
        ('recipe = "degla"\nbackbone = "clip"\ndataset = 3', UsageError, "each a text"),
        ('recipe = "dega"\nbackbone = "clip"\ndataset = "coco"', UnknownName, "Did you mean 'degla'"),
        ('recipe = "degla"\nbackbone = "clip"\ndataset = "coco"\n[optm]\nlr = 1', UnknownName, "Did you mean 'optim'"),
        ("recipe = ", InputError, "not valid TOML"),
    ],
)
def test_a_broken_set_up_is_refused(tmp_path, text, error, said):
    mine = tmp_path / "mine.toml"
    mine.write_text(text)
    with pytest.raises(error, match=said):
        load_recipe(str(mine))


def test_a_misspelt_set_up_is_found():
    with pytest.raises(UnknownName, match="Did you mean 'negclip-coco'"):
        load_recipe("negclip-cocoa")


def test_its_own_backbone_and_data_are_the_defaults(tmp_path, capsys):
    code, out, _ = run("fit", "tflocal-trohn-img-pe", "--backbone", RANDOM["pe"], "--dry-run", "--work", tmp_path)
    assert code == 0
    assert "first  compal extract --backbone open_clip:PE-Core-B-16 --data trohn-img --split train" in out
