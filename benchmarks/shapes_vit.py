"""Make `shapes-vit`, the small dual encoder that compal ships, and measure what it can and cannot do.

    python benchmarks/shapes_vit.py --out assets/shapes_vit           # the shipped weights, about 17 minutes on a core
    python benchmarks/shapes_vit.py --steps 50 --out /tmp/shapes_vit  # a quick look

Plain symmetric InfoNCE on the plain scenes of the world's train split: no negatives, nothing that helps or
hinders binding. Every `--every` steps it saves the weights and prints retrieval R@1 among 300 plain test scenes,
the swap group score of the global cosine, and that of oracle crops × phrases (the best crop of each phrase, then
the mean). The shipped weights were made with OMP_NUM_THREADS=1; another thread count sums in another order.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from compal.eval.metrics import quads_hits, recall
from compal.pipeline.regions import image_views
from compal.pipeline.words import WordTokenizer
from compal.world.render import render
from compal.world.splits import PLAIN, Quad, plain, quad
from compal.world.vocabulary import CATEGORIES, words

PIXELS, CONTEXT = 64, 64


def model_config(width: int, layers: int, embed: int, vocabulary: int) -> dict[str, Any]:
    """open_clip's configuration of both towers."""
    tower = {"layers": layers, "width": width}
    return {
        "embed_dim": embed,
        "vision_cfg": {"image_size": PIXELS, "patch_size": 8, **tower, "head_width": 32},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": vocabulary, **tower, "heads": width // 32},
    }


def build(config: dict[str, Any]) -> open_clip.CLIP:
    """The model, randomly initialised."""
    return open_clip.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=open_clip.CLIPVisionCfg(**config["vision_cfg"]),
        text_cfg=open_clip.CLIPTextCfg(**config["text_cfg"]),
    )


def image_embeddings(model: open_clip.CLIP, images: np.ndarray) -> torch.Tensor:
    """(B, 64, 64, 3) uint8 → (B, E), normalised."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
    return F.normalize(model.encode_image(pixels), dim=-1)


def text_embeddings(model: open_clip.CLIP, ids: torch.Tensor) -> torch.Tensor:
    """(B, context) ids → (B, E), normalised; run at the length of the longest caption, which is exact, since
    attention is causal and padding comes last."""
    length = int((ids != 0).sum(1).max())
    ids, mask = ids[:, :length], model.attn_mask[:length, :length]
    states = model.token_embedding(ids) + model.positional_embedding[:length]
    states = model.ln_final(model.transformer(states, attn_mask=mask))
    return F.normalize(states[torch.arange(len(ids)), ids.argmax(-1)] @ model.text_projection, dim=-1)


class Embedder:
    """Embeddings of many pictures or sentences as numpy arrays."""

    def __init__(self, model: open_clip.CLIP, tokenizer: WordTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    @torch.inference_mode()
    def images(self, images: list[np.ndarray]) -> np.ndarray:
        return torch.cat([image_embeddings(self.model, np.stack(batch)) for batch in _batched(images, 256)]).numpy()

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> np.ndarray:
        return torch.cat([text_embeddings(self.model, self.tokenizer(batch)) for batch in _batched(texts, 256)]).numpy()


def _batched(values: list[Any], size: int) -> list[list[Any]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def split_like(flat: np.ndarray, rows: list[list[Any]]) -> list[np.ndarray]:
    """Cut a flat array into pieces as long as `rows`."""
    return np.split(flat, np.cumsum([len(row) for row in rows])[:-1])


def measure(model: open_clip.CLIP, tokenizer: WordTokenizer, quads: list[Quad], scenes: int = 300) -> dict[str, Any]:
    """Retrieval, and group scores in percent by category, of the global cosine and of the oracle."""
    model.eval()
    embed = Embedder(model, tokenizer)
    told = list(itertools.islice((s for n in range(10_000) if (s := plain("test", n))[0].count > 1), scenes))
    similarity = embed.images([render(s) for s, _ in told]) @ embed.texts([c[0].text for _, c in told]).T
    found = recall(similarity, np.eye(scenes, dtype=bool), (1,))
    images = [render(scene) for made in quads for scene in made.scenes]
    captions = [caption for made in quads for caption in made.captions]
    pooled = embed.images(images).reshape(len(quads), 2, -1), embed.texts([c.text for c in captions])
    cosine = np.einsum("qid,qtd->qit", pooled[0], pooled[1].reshape(len(quads), 2, -1))
    boxes = [scene.boxes() for made in quads for scene in made.scenes]
    crops = [
        [np.asarray(v.resize((PIXELS, PIXELS), Image.Resampling.BILINEAR)) for v in image_views(Image.fromarray(i), b)]
        for i, b in zip(images, boxes, strict=True)
    ]
    phrases = [[c.text[start:end] for start, end, kind in c.segments if kind == "object"] for c in captions]
    regions = split_like(embed.images([crop for row in crops for crop in row]), crops)
    segments = split_like(embed.texts([phrase for row in phrases for phrase in row]), phrases)
    oracle = np.array([
        [[(segments[2 * q + t] @ regions[2 * q + i].T).max(1).mean() for t in (0, 1)] for i in (0, 1)]
        for q in range(len(quads))
    ])  # fmt: skip
    model.train()
    kinds = np.array([made.category for made in quads])

    def by_category(scores: np.ndarray) -> dict[str, float]:
        hits = quads_hits(scores)["group"]
        named = {category: hits[kinds == category] for category in CATEGORIES if (kinds == category).any()}
        return {name: round(float(some.mean()) * 100, 1) for name, some in {**named, "all": hits}.items()}

    return {
        "i2t_r@1": round(found["i2t_r@1"], 1),
        "t2i_r@1": round(found["t2i_r@1"], 1),
        "cosine": by_category(cosine),
        "oracle": by_category(oracle),
    }


def train(args: argparse.Namespace) -> None:
    """Render, tokenize, train; save and measure every `args.every` steps."""
    started = time.time()
    data = [plain("train", number) for number in range(args.scenes)]
    images = np.stack([render(scene) for scene, _ in data])
    tokenizer = WordTokenizer(words(), CONTEXT)
    ids = torch.stack([tokenizer([caption.text for caption in told]) for _, told in data])
    print(f"{len(images):,} scenes after {time.time() - started:.0f} s", flush=True)
    torch.manual_seed(args.seed)
    config = model_config(args.width, args.layers, args.embed, tokenizer.vocab_size)
    model = build(config)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.lr, args.steps, pct_start=0.1)
    quads = [quad("test", number) for number in range(500)]
    generator = torch.Generator().manual_seed(args.seed)
    order = torch.empty(0, dtype=torch.long)
    target = torch.arange(args.batch)
    for step in range(1, args.steps + 1):
        if len(order) < args.batch:
            order = torch.randperm(len(images), generator=generator)
        batch, order = order[: args.batch], order[args.batch :]
        which = torch.randint(ids.shape[1], (args.batch,), generator=generator)
        image = image_embeddings(model, images[batch.numpy()])
        logits = model.logit_scale.exp().clamp(max=100) * image @ text_embeddings(model, ids[batch, which]).T
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.3f} after {time.time() - started:.0f} s", flush=True)
        if step % args.every == 0 or step == args.steps:
            save(args, config, model)
            print(json.dumps({"step": step, **measure(model, tokenizer, quads)}), flush=True)


def save(args: argparse.Namespace, config: dict[str, Any], model: open_clip.CLIP) -> None:
    """Weights as safetensors, and the configuration with the words and the settings that made them."""
    args.out.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in model.state_dict().items() if name != "attn_mask"}
    save_file(state, args.out / "model.safetensors")
    made_by = {name: str(value) for name, value in vars(args).items() if name != "out"}
    text = json.dumps({**config, "words": words(), "made_by": made_by}, indent=1)
    (args.out / "config.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1250)
    parser.add_argument("--scenes", type=int, default=PLAIN["train"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--embed", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=500)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
