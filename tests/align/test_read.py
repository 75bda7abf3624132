"""READ-CLIP's terms against loops over captions in float64; decoders of three families; what a run keeps of them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from compal.align.batches import FeatureTable
from compal.align.fit import FitConfig, fit
from compal.align.losses import read
from compal.align.losses._decoder import Decoder
from compal.align.pairs import PairTable
from compal.align.sampling import DataConfig, Sampler
from compal.align.scorer import Dims, Views, build_head, vector_width
from compal.align.training import Training
from compal.config import from_dict
from compal.errors import InputError, UsageError

from .test_losses import SPACE, agree, make, own, slow_infonce

transformers = pytest.importorskip("transformers")
SEEDS = pytest.mark.parametrize("seed", range(3))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Small decoders at random, saved as a user has them: an encoder-decoder with relative positions, one with absolute
    ones, a causal one; none has learnt anything."""
    folder, tokenizer = tmp_path_factory.mktemp("decoders"), transformers.ByT5Tokenizer()
    known = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1}
    made = {
        "t5": transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, **known
            )
        ),
        "bart": transformers.BartForConditionalGeneration(
            transformers.BartConfig(
                d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64, bos_token_id=0,
                forced_eos_token_id=1, decoder_start_token_id=1, **known,
            )
        ),
        "gpt2": transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=1, **known)
        ),
    }  # fmt: skip
    transformers.utils.logging.disable_progress_bar()
    for name, model in made.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


FAMILIES = pytest.mark.parametrize("family", ["random", "t5", "bart", "gpt2"])


def decoder(folders, family, width=SPACE, longest=77):
    torch.manual_seed(1)
    name = family if family.startswith("random") else str(folders / family)
    return Decoder(name, width, longest).double()


def with_further(seed):
    """The batch of the other objectives with captions as texts; pairs have none to two further captions of their image,
    one of them the caption of another pair, one shared with another image."""
    batch, (seen, _) = make(seed)
    made = torch.Generator().manual_seed(60 + seed)
    count, captions = len(batch.pairs), batch.positives.shape[1]
    further = torch.full((count, 2), -1)
    further[0, 0], further[count - 2, 0] = batch.pairs[count - 2, 1], batch.pairs[0, 1]
    free = [column for column in range(count, captions) if not (batch.negatives == column).any()]
    for pair in range(1, count - 2):
        size = int(torch.randint(0, 3, (), generator=made))
        taken = torch.randperm(len(free), generator=made)[:size].tolist()
        further[pair, : len(taken)] = torch.tensor([free[place] for place in taken])
    there = further >= 0
    batch.positives[batch.pairs[:, :1].expand_as(further)[there], further[there]] = True
    batch.further = further
    batch.told = lambda columns: [f"{'a red cube on a mat '[: 3 + number % 11]}{number}" for number in columns]
    return batch, seen


def log_probabilities(module, vector, caption):
    """Of each token of a caption, by a pass of the model for each: nothing is padded, nothing stands behind."""
    model, tokenizer = module._frozen[0], module._tokenizer
    ids = tokenizer(caption)["input_ids"]
    state = (math.sqrt(len(vector)) * vector @ module.projection.weight.T)[None, None]
    found = []
    for place, token in enumerate(ids):
        before = torch.tensor([ids[:place]], dtype=torch.long)
        if model.config.is_encoder_decoder:
            start = torch.tensor([[model.config.decoder_start_token_id]])
            logits = model(encoder_outputs=(state,), decoder_input_ids=torch.cat([start, before], 1)).logits
        else:
            words = model.get_input_embeddings()(before)
            logits = model(inputs_embeds=torch.cat([state, words], 1)).logits
        found.append(logits[0, -1].log_softmax(0)[token])
    return found


def slow_read(batch, seen, config, scale, module):
    texts, told, ways = F.normalize(seen.text, dim=1), [], []
    count = len(batch.pairs)
    kept = sorted({column for pair in range(count) for column in (own(batch, pair)[1], *own(batch, pair)[2])})
    narrow = Views(seen.scores[:, kept])
    restricted = type("Batch", (), {"positives": batch.positives[:, kept]})
    total = slow_infonce(restricted, narrow, scale)
    asked = [(pair, int(c)) for pair in range(count) for c in batch.further[pair] if c >= 0]
    pairs = sorted({pair for pair, _ in asked})
    for pair, column in asked:
        told += log_probabilities(module, texts[batch.pairs[pair, 1]], batch.told([column])[0])
    total = total - config.rec * torch.stack(told).mean()

    def cost(anchor, candidates):
        """The mean over what describes the same image of its cost against what does not."""
        right = [logit for logit, same in candidates if same]
        wrong = [logit for logit, same in candidates if not same]
        return torch.stack([torch.stack([one, *wrong]).logsumexp(0) - one for one in right]).mean()

    def entry(pair, column):
        row, caption = batch.pairs[pair].tolist()
        return scale * texts[column] @ texts[caption], bool(batch.positives[row, column])

    by_paraphrase = [[entry(pair, column) for pair in pairs] for _, column in asked]
    by_caption = [[entry(pair, column) for _, column in asked] for pair in pairs]
    for way in (by_paraphrase, by_caption):
        ways.append(torch.stack([cost(None, one) for one in way if not all(same for _, same in one)]).mean())
    aligned = (ways[0] + ways[1]) / 2 if config.align_form == "symmetric" else ways[0]
    return total + config.align * aligned


@SEEDS
@FAMILIES
@pytest.mark.parametrize("form", ["symmetric", "as_released"])
def test_read_is_its_formula(folders, seed, family, form):
    """Values, and gradients to images, captions, the projection and the scale."""
    batch, seen = with_further(seed)
    module = decoder(folders, family)
    config = read.Config(temperature=0.2, rec=0.7, align=1.3, align_form=form)
    fitted = {"log_scale": torch.tensor(math.log(5), dtype=torch.float64, requires_grad=True)}
    found = read.loss(seen.scores, batch, config, fitted, views=seen, module=module)
    expected = slow_read(batch, seen, config, fitted["log_scale"].exp(), module)
    agree(found, expected, seen)
    leaves = [fitted["log_scale"], module.projection.weight]
    ours, theirs = (torch.autograd.grad(value, leaves, retain_graph=True) for value in (found, expected))
    for gradient, right in zip(ours, theirs, strict=True):  # T5 takes its softmax in float32, whatever it is given
        torch.testing.assert_close(gradient, right, rtol=1e-6, atol=1e-6 * float(right.abs().max()))
        assert gradient.abs().max() > 0
    fixed = read.loss(seen.scores, batch, config, views=seen, module=module)
    torch.testing.assert_close(fixed, expected.detach(), rtol=1e-6, atol=0)


@FAMILIES
def test_a_caption_costs_the_same_beside_longer_ones(folders, family):
    module, vectors = decoder(folders, family), F.normalize(torch.randn(3, SPACE, dtype=torch.float64), dim=1)
    captions = ["a", "a red cube", "a red cube on a mat"]
    sizes = [len(caption) + 1 for caption in captions]
    alone = [module(vector[None], [caption]) for vector, caption in zip(vectors, captions, strict=True)]
    mean = sum(cost * size for cost, size in zip(alone, sizes, strict=True)) / sum(sizes)
    torch.testing.assert_close(module(vectors, captions), mean, rtol=1e-12, atol=0)


def test_the_tokens_are_those_of_transformers_own_labels(folders):
    """The published loss: T5's own, given labels."""
    module = decoder(folders, "t5")
    vectors, captions = torch.randn(2, SPACE, dtype=torch.float64), ["a dog", "a cat on a mat"]
    labels = module._tokenizer(captions, padding=True, return_tensors="pt")["input_ids"]
    states = (vectors * SPACE**0.5) @ module.projection.weight.T
    labels = labels.masked_fill(labels == 0, -100)
    theirs = module._frozen[0].double()(encoder_outputs=(states[:, None],), labels=labels)
    torch.testing.assert_close(module(vectors, captions), theirs.loss, rtol=1e-12, atol=0)


def test_long_captions_are_cut_and_end():
    module = Decoder("random", SPACE, 5)
    assert module._tokens("abc") == [100, 101, 102, 1]
    assert module._tokens("abcdefgh") == [100, 101, 102, 103, 1]


def test_the_decoder_is_frozen_and_in_no_state(folders):
    module = Decoder(str(folders / "t5"), SPACE, 77).train()
    assert list(module.state_dict()) == ["projection.weight"]
    model = module._frozen[0]
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not list(model.get_encoder().parameters())
    before = torch.random.get_rng_state()
    one, other = Decoder("random:3", SPACE, 77), Decoder("random:4", SPACE, 77)
    again = Decoder("random:3", SPACE, 77)
    shared = [one._frozen[0].shared.weight, again._frozen[0].shared.weight, other._frozen[0].shared.weight]
    assert torch.equal(shared[0], shared[1])
    assert not torch.equal(shared[0], shared[2])
    torch.random.set_rng_state(before)


def test_pairs_without_another_caption_have_the_contrastive_loss_alone(folders):
    batch, seen = with_further(0)
    module, config = decoder(folders, "t5"), read.Config(temperature=0.2)
    batch.further[:] = -1
    alone = read.loss(seen.scores, batch, config, views=seen, module=module)
    batch.further = batch.further[:, :0]
    torch.testing.assert_close(read.loss(seen.scores, batch, config, views=seen, module=module), alone)
    bare = read.Config(temperature=0.2, rec=0, align=0)
    assert read.build(bare, SPACE) is None
    torch.testing.assert_close(read.loss(seen.scores, batch, bare, views=seen), alone)
    batch.further = None
    with pytest.raises(UsageError, match=r"data\.further = 1"):
        read.loss(seen.scores, batch, config, views=seen, module=module)
    with pytest.raises(UsageError, match=r"loss\.longest"):
        read.Config(longest=0)


# --- what cannot be loaded -------------------------------------------------------------------------------


def says(name, text):
    with pytest.raises((InputError, UsageError), match=text) as found:
        Decoder(str(name), SPACE, 77)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 420


def test_what_is_no_decoder(folders, tmp_path, monkeypatch):
    tokenizer, gpt2 = transformers.ByT5Tokenizer(), transformers.GPT2LMHeadModel.from_pretrained(folders / "gpt2")
    monkeypatch.setattr("compal.align.losses._decoder._online", lambda: False)
    says("random:x", r"no number for a seed")
    says("nobody/has-this", r"'nobody/has-this' cannot be loaded: .*Set loss\.decoder to")
    says(tmp_path / "nowhere", r"no .*nowhere/config\.json")
    gpt2.save_pretrained(tmp_path / "mute")
    says(tmp_path / "mute", r"the tokenizer of decoder .* has no token for")
    blind = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertLMHeadModel(blind).save_pretrained(tmp_path / "blind")
    tokenizer.save_pretrained(tmp_path / "blind")
    says(tmp_path / "blind", "sees the tokens that it is to generate")
    small = transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
    transformers.GPT2LMHeadModel(small).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    says(tmp_path / "small", f"has {len(tokenizer)} tokens, its model 20")


def test_a_pickle_is_not_opened(folders, tmp_path):
    model = transformers.GPT2LMHeadModel.from_pretrained(folders / "gpt2")
    model.config.save_pretrained(tmp_path)
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    says(tmp_path, r"no file named model\.safetensors")


def test_weights_that_are_missing_are_not_made_up(folders, tmp_path):
    from safetensors.torch import save_file

    for file in (folders / "gpt2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("attn.c_attn.weight"))
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    says(tmp_path, r"lacks weights: .*attn\.c_attn\.weight")


def test_without_transformers(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    says("random", r"needs transformers\. pip install 'compal\[hf\]'")


# --- in a run --------------------------------------------------------------------------------------------

LOSS = {"name": "read", "decoder": "random", "temperature": 0.2}


def test_the_width_is_that_of_the_heads_vectors(store):
    torch.manual_seed(0)
    dims = Dims.of(store.spec)
    for name, options, width in (("linear", {}, 8), ("meanpool", {"width": 12}, 12)):
        head = build_head(name, options, dims)
        assert vector_width(head) == width
        assert head.training
        assert Training(head, LOSS).built.projection.weight.shape == (32, width)
    with pytest.raises(UsageError, match="one vector a side"):
        Training(build_head("tflocal", {"width": 16, "heads": 2, "layers": 1}, dims), LOSS)


def test_batches_bring_the_captions(store, plain_table):
    """Ten images of the plain table have a second caption; each is drawn as the other's."""
    table = PairTable.read(plain_table, store)
    sampler = Sampler(table, DataConfig(batch_size=30, further=1, groups=False), 1, 0)
    features = FeatureTable.loaded(store, table.image_keys, table.caption_keys, "cpu", "pooled")
    batch = sampler.draw(0).batch(features)
    rows = store.table("text").select(["key", "caption"]).to_pylist()
    texts = {row["key"]: row["caption"] for row in rows}
    draw = sampler.draw(0)
    assert "texts" not in vars(table)
    columns = batch.further[batch.further >= 0].tolist()
    assert len(columns) == 20
    assert batch.told(columns) == [texts[table.caption_keys[draw.captions[column]]] for column in columns]
    read.check(table)


def test_a_table_with_one_caption_an_image_is_refused(store, quad_table, tmp_path):
    config = from_dict(FitConfig, {"head": {"name": "linear"}, "loss": LOSS, "data": {"further": 1}})
    with pytest.raises(InputError, match=r"no image of .* has a second caption"):
        fit(config, store, quad_table, None, tmp_path)


def test_a_run_resumes_and_keeps_no_decoder(store, plain_table, tmp_path):
    """Stopped after a checkpoint and resumed: the same losses, the same projection. The file holds the projection, and
    of the decoder nothing."""
    asked = {
        "head": {"name": "linear"},
        "loss": LOSS,
        "optim": {"steps": 12, "lr": 1e-2},
        "data": {"batch_size": 10, "negatives": 2, "further": 1},
        "validation": {"every": 4},
        "level": "tokens",
        "log_every": 1,
        "deterministic": True,
    }
    config = from_dict(FitConfig, asked)
    fit(config, store, plain_table, None, tmp_path / "whole")

    class Stopped(Exception):
        pass

    def stop(seen):
        if seen.step == 6:
            raise Stopped

    with pytest.raises(Stopped):
        fit(config, store, plain_table, None, tmp_path / "cut", progress=stop)
    fit(config, store, plain_table, None, tmp_path / "cut", resume=True)
    whole, cut = (load_file(tmp_path / name / "checkpoints" / "state.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert sorted(name for name in whole if "built" in name) == ["module.built.projection.weight"]
    torch.manual_seed(0)
    begun = Training(build_head("linear", {}, Dims.of(store.spec)), LOSS).built.projection.weight
    assert not torch.equal(whole["module.built.projection.weight"], begun)
    kept = load_file(tmp_path / "whole" / "checkpoints" / "last.safetensors")
    assert not any("projection" in name for name in kept)
