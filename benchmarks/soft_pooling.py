"""Soft pooling of all images against all captions, as the time of the plain form over ours.

    python benchmarks/soft_pooling.py           # on the GPU where there is one, else on the CPU
    python benchmarks/soft_pooling.py --full    # more rounds, for the record
    python benchmarks/soft_pooling.py --json

Rounds are interleaved: in each, ours and the plain form run once; figures are medians. The plain forms are what one
writes first: attention that builds the pooled vector of every token, (B, B, L, D); Sinkhorn by `logsumexp` over all
(B, B, L, P) similarities, with autograd through every iteration where it is trained.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from maxsim import DEVICE, PATCHES, WORDS, machine, rounds, table, tokens, training
from torch import Tensor

from compal.align.kernels import attend, transport

Score = Callable[[Tensor, Tensor], Tensor]
KAPPA, EPSILON, ITERATIONS = 9.0, 0.1, 20


def naive_attend(image: Tensor, text: Tensor) -> Tensor:
    """`reference_attend` without its masks and guards."""
    similarity = torch.einsum("ipd,cld->iclp", image, text)
    pooled = torch.einsum("iclp,ipd->icld", (KAPPA * similarity).softmax(-1), image)
    return torch.nn.functional.cosine_similarity(pooled, text[None], dim=-1).mean(-1)


def naive_sinkhorn(image: Tensor, text: Tensor) -> Tensor:
    """`reference_transport` without its masks, differentiated through the iterations."""
    scaled = torch.einsum("ipd,cld->iclp", image, text) / EPSILON
    words, patches = (torch.tensor(float(side)).log() for side in scaled.shape[2:])
    g = scaled.new_zeros(*scaled.shape[:3], 1)
    for _ in range(ITERATIONS):
        f = (scaled - g).logsumexp(2, keepdim=True) - words
        g = (scaled - f).logsumexp(3, keepdim=True) - patches
    return EPSILON * (f.mean((2, 3)) + g.mean((2, 3)))


def our_attend(image: Tensor, text: Tensor) -> Tensor:
    return attend(image, text, kappa=KAPPA)


def our_sinkhorn(image: Tensor, text: Tensor) -> Tensor:
    return transport(image, text, epsilon=EPSILON, iterations=ITERATIONS)


def agree(ours: Score, plain: Score, width: int) -> None:
    """Raises `RuntimeError` where what is timed is not the same."""
    image, text = tokens(4, width)
    apart = float((ours(image, text) - plain(image, text)).abs().max())
    if apart > (1e-2 if image.dtype == torch.bfloat16 else 1e-4):
        raise RuntimeError(f"the two forms are {apart:.2g} apart")


def compare(name: str, width: int, batch: int, trained: bool, count: int) -> dict[str, Any]:
    ours, plain = (our_attend, naive_attend) if name == "attend" else (our_sinkhorn, naive_sinkhorn)
    agree(ours, plain, width)
    image, text = tokens(batch, width)
    functions: dict[str, Callable[[], Any]] = {
        which: training(score, image, text) if trained else lambda score=score: score(image, text)  # type: ignore[misc]
        for which, score in (("compal", ours), ("plain", plain))
    }
    seconds = rounds(functions, count)
    return {
        "score": name if name == "attend" else f"Sinkhorn-{ITERATIONS}",
        "D": width,
        "B": batch,
        "pass": "forward and backward" if trained else "forward",
        "compal s": seconds["compal"],
        "plain s": seconds["plain"],
        "plain over compal": seconds["plain"] / seconds["compal"],
    }


def measure(full: bool) -> dict[str, Any]:
    """The plain backward keeps 2 (attend) or 80 (Sinkhorn) tensors of all similarities: its B is what memory holds."""
    count = 7 if full else 3
    cases = {
        "attend_768_vs_naive": ("attend", 768, 64, False),
        "train_attend_768_vs_naive": ("attend", 768, 32, True),
        "sinkhorn20_vs_naive": ("transport", 768, 64, False),
        "train_sinkhorn20_vs_naive": ("transport", 768, 32, True),
        "sinkhorn20_256_vs_naive": ("transport", 256, 64, False),
    }
    rows = {key: compare(*case, count) for key, case in cases.items()}
    result: dict[str, Any] = {"machine": machine(), "threads": torch.get_num_threads()}
    result |= {key: row["plain over compal"] for key, row in rows.items()}
    return {**result, "rows": list(rows.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.full)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['machine']}, {result['threads']} threads, torch {torch.__version__}, {DEVICE}\n")
    print(f"P = {PATCHES}, L = {WORDS}\n\n{table(result['rows'])}")


if __name__ == "__main__":
    main()
