"""Small dual encoders of transformers' real architectures, saved as they lie on the hub; nothing is downloaded."""

import io
import string
from pathlib import Path

import torch

CONTEXT = 16
WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
TEXT = {**WIDTH, "num_hidden_layers": 2}
VISION = {**WIDTH, "num_hidden_layers": 3, "patch_size": 8}
SENTENCES = ["a red cube left of a blue ball", "two dogs and two cats", "the green cat", "a photo of a dog"]


def clip_tokenizer():
    """CLIP's byte pairs: all bytes, and merges for the word "red"."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>")]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)


def siglip_tokenizer(folder):
    """SigLIP's sentence pieces, trained on four captions."""
    import sentencepiece
    from transformers import SiglipTokenizer

    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_writer=pieces, vocab_size=60, minloglevel=3,
        pad_id=-1, bos_id=-1, eos_id=1, unk_id=0, hard_vocab_limit=False,
    )  # fmt: skip
    path = Path(folder) / "trained.model"
    path.write_bytes(pieces.getvalue())
    return SiglipTokenizer(str(path))


def siglip2_tokenizer():
    """Gemma's byte pairs in small: it ends captions, and knows no capital letters."""
    from tokenizers import processors
    from transformers import Siglip2Tokenizer

    merges = [("r", "e"), ("re", "d"), ("▁", "a")]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens += [*"▁,.!", *string.ascii_lowercase, *string.digits, *map("".join, merges)]
    tokenizer = Siglip2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, padding_side="right"
    )
    ending = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.backend_tokenizer.post_processor = ending
    return tokenizer


def parts(family, folder, context):
    """(configuration, model class, tokenizer, image processor) of a family."""
    shape = {**TEXT, "max_position_embeddings": context}
    import transformers

    if family in ("clip", "clip-legacy", "metaclip_2"):
        tokenizer = clip_tokenizer()
        # Configurations from before transformers 4.31 say that the end token is 2.
        end = 2 if family == "clip-legacy" else tokenizer.eos_token_id
        name = "MetaClip2" if family == "metaclip_2" else "CLIP"
        config = getattr(transformers, f"{name}Config")(
            text_config={**shape, "vocab_size": len(tokenizer), "eos_token_id": end, "bos_token_id": 0},
            vision_config={**VISION, "hidden_size": 48, "image_size": 32},
            projection_dim=24,
        )
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
        return config, getattr(transformers, f"{name}Model"), tokenizer, processor
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    if family == "siglip":
        tokenizer = siglip_tokenizer(folder)
        text = {**shape, **ids, "vocab_size": len(tokenizer)}
        config = transformers.SiglipConfig(text_config=text, vision_config={**VISION, "image_size": 32})
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
        return config, transformers.SiglipModel, tokenizer, processor
    tokenizer = siglip2_tokenizer()
    text = {**shape, **ids, "vocab_size": len(tokenizer), "projection_size": 32}
    config = transformers.Siglip2Config(text_config=text, vision_config={**VISION, "num_patches": 16})
    processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=25)
    return config, transformers.Siglip2Model, tokenizer, processor


def save(family, folder, seed=0, context=CONTEXT):
    """A model of a family with random weights, its tokenizer and its image processor in `folder`."""
    from compal.hub import quietly

    folder.mkdir(parents=True, exist_ok=True)
    with quietly(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config, kind, tokenizer, processor = parts(family, folder, context)
        model = kind(config)
        for parameter in model.parameters():  # so that no zero-initialised branch hides a mistake
            parameter.data += 0.02 * torch.randn_like(parameter)
        for part in (model, tokenizer, processor):
            part.save_pretrained(folder)
    (folder / "trained.model").unlink(missing_ok=True)
    return model.eval()
