"""MaxSim of all images against all captions, as a share of what the machine's matrix product reaches.

    python benchmarks/maxsim.py           # on the GPU where there is one, else on the CPU
    python benchmarks/maxsim.py --full    # more rounds, for the record
    python benchmarks/maxsim.py --json

Rounds are interleaved: in each, the product (the peak), ours and every other form run once; figures are medians.
"fwd_*" are shares of the product's FLOP/s; "train_*" are the time of the named form over ours, forward and backward.
Other packages (`_maxsim_peers.py`) are timed where they are installed and right. On a GPU everything is bfloat16.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _maxsim_peers import Score, peers
from torch import Tensor

from compal.align.kernels import Packed, maxsim

PATCHES, WORDS = 196, 32
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32


def tokens(batch: int, width: int, words: int = WORDS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch, PATCHES, width, generator=generator)
    text = torch.randn(batch, words, width, generator=generator)
    return tuple(torch.nn.functional.normalize(part, dim=-1).to(DEVICE, DTYPE) for part in (image, text))  # type: ignore[return-value]


def naive(how: str, direction: str, mask: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """einsum, then amax (keeps all similarities for backward) or max().values (keeps int64 places)."""

    def best(similarity: Tensor, dim: int) -> Tensor:
        return similarity.amax(dim) if how == "amax" else similarity.max(dim).values

    def score(image: Tensor, text: Tensor) -> Tensor:
        similarity = torch.einsum("ipd,cld->icpl", image, text).float()
        if mask is None:
            found = [best(similarity, -2).mean(-1)] if direction != "i2t" else []
            found += [best(similarity, -1).mean(-1)] if direction != "t2i" else []
        else:
            taken = best(similarity, -2).masked_fill(~mask, 0).sum(-1)
            found = [taken / mask.sum(-1)]
        return torch.stack(found).mean(0)

    return score


def timed(function: Callable[[], Any]) -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def rounds(functions: dict[str, Callable[[], Any]], count: int) -> dict[str, float]:
    """The median seconds of each, run in turns after one warm-up."""
    for function in functions.values():
        function()
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(count):
        for name, function in functions.items():
            found[name].append(timed(function))
    return {name: statistics.median(times) for name, times in found.items()}


def product(flops: float, width: int) -> tuple[Callable[[], Any], float]:
    """A large product of the tile's width, and its own FLOPs."""
    side = 4096 if DEVICE == "cuda" else 2048
    left = torch.randn(side, width, device=DEVICE, dtype=DTYPE)
    right = torch.randn(width, side, device=DEVICE, dtype=DTYPE)
    out = torch.empty(side, side, device=DEVICE, dtype=DTYPE)
    repeats = max(1, round(flops / (2 * side * side * width)))

    def run() -> None:
        for _ in range(repeats):
            torch.mm(left, right, out=out)

    return run, repeats * 2 * side * side * width


def training(score: Callable[[Tensor, Tensor], Tensor], image: Tensor, text: Tensor) -> Callable[[], None]:
    image, text = image.clone().requires_grad_(), text.clone().requires_grad_()

    def run() -> None:
        image.grad = text.grad = None
        scores = score(image, text)
        labels = torch.arange(len(scores), device=scores.device)
        torch.nn.functional.cross_entropy(100 * scores, labels).backward()

    return run


def forward(width: int, direction: str, batch: int, count: int) -> dict[str, Any]:
    image, text = tokens(batch, width)
    flops = 2.0 * batch * batch * PATCHES * WORDS * width
    peak, work = product(flops, width)
    functions: dict[str, Callable[[], Any]] = {"product": peak}
    functions["compal"] = lambda: maxsim(image, text, direction=direction)  # type: ignore[arg-type]
    functions["einsum+amax"] = lambda: naive("amax", direction)(image, text)
    with torch.no_grad():
        told = beside(direction, False, image, text)
        for name, call in told.items():
            if not isinstance(call, str):
                functions[name] = lambda call=call: call(image, text)  # type: ignore[misc]
        seconds = rounds(functions, count)
    rate = work / seconds["product"]
    row: dict[str, Any] = {name: flops / taken / rate for name, taken in seconds.items() if name != "product"}
    row |= {name: call for name, call in told.items() if isinstance(call, str)}
    return {"D": width, "direction": direction, "B": batch, "peak GFLOP/s": rate / 1e9, **row}


def train(width: int, direction: str, batch: int, count: int) -> dict[str, Any]:
    image, text = tokens(batch, width)
    functions = {"compal": training(lambda i, t: maxsim(i, t, direction=direction), image, text)}  # type: ignore[arg-type]
    for how in ("amax", "max_values"):
        functions[how] = training(naive(how, direction), image, text)
    told = beside(direction, True, image, text)
    for name, call in told.items():
        if not isinstance(call, str):
            functions[name] = training(call, image, text)
    seconds = rounds(functions, count)
    ratios: dict[str, Any] = {name: taken / seconds["compal"] for name, taken in seconds.items() if name != "compal"}
    ratios |= {name: call for name, call in told.items() if isinstance(call, str)}
    return {"D": width, "direction": direction, "B": batch, "compal s": seconds["compal"], **ratios}


def beside(direction: str, trained: bool, image: Tensor, text: Tensor) -> dict[str, Score | str]:
    """The other packages."""
    return peers(DEVICE, direction, trained, lambda i, t: maxsim(i, t, direction=direction), image, text)  # type: ignore[arg-type]


def train_ragged(batch: int, count: int) -> dict[str, Any]:
    """Captions of 8 to 77 tokens: ours packed, the naive form padded to 77."""
    width = 512
    image, text = tokens(batch, width, 77)
    lengths = torch.randint(8, 78, (batch,), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(77) < lengths[:, None]
    flat = text[mask.to(text.device)]
    lengths = lengths.to(DEVICE)
    functions = {"compal": training(lambda i, t: maxsim(i, Packed(t, lengths)), image, flat)}
    for how in ("amax", "max_values"):
        functions[how] = training(naive(how, "t2i", mask.to(DEVICE)), image, text)
    seconds = rounds(functions, count)
    ratios = {name: taken / seconds["compal"] for name, taken in seconds.items() if name != "compal"}
    return {"D": width, "direction": "t2i, ragged 8–77", "B": batch, "compal s": seconds["compal"], **ratios}


def retained(batch: int, direction: str = "both", width: int = 256) -> float:
    """Bytes kept for backward beside the tokens, over those of the similarities in float32."""
    image, text = (part.requires_grad_() for part in tokens(batch, width))
    own = {image.data_ptr(), text.data_ptr()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maxsim(image, text, direction=direction)  # type: ignore[arg-type]
    return sum(kept.values()) / (4 * batch * batch * PATCHES * WORDS)


def peak_memory(batch: int) -> dict[str, float]:
    """The largest growth of resident memory in a step of both directions, over the similarities in float32; each
    form in a process of its own, as freed memory is not given back."""
    import subprocess

    found = {}
    for name in ("compal", "amax", "max_values"):
        output = subprocess.run(
            [sys.executable, __file__, "--growth", name, str(batch)], capture_output=True, check=True
        )
        found[name] = int(output.stdout) / (4 * batch * batch * PATCHES * WORDS)
    return found


def growth(name: str, batch: int) -> int:
    small, large = tokens(2, 256), tokens(batch, 256)
    score = (lambda i, t: maxsim(i, t, direction="both")) if name == "compal" else naive(name, "both")
    training(score, *small)()
    before = high_water()
    training(score, *large)()
    return high_water() - before


def high_water() -> int:
    """Bytes; of /proc, as the one of getrusage begins with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measure(full: bool) -> dict[str, Any]:
    count, batch = (9, 64) if full else (3, 64)
    forwards = [forward(width, direction, batch, count) for width in (256, 768) for direction in ("t2i", "both")]
    trains = [train(256, "t2i", batch, count), train(256, "both", batch, count)]
    trains += [train(768, "t2i", batch, count), train(768, "both", batch, count)] if full else []
    trains.append(train_ragged(batch, count))
    result: dict[str, Any] = {"machine": machine(), "threads": torch.get_num_threads()}
    names = ("fwd_t2i_256", "fwd_both_256", "fwd_t2i_768", "fwd_both_768")
    result |= {name: row["compal"] for name, row in zip(names, forwards, strict=True)}
    result["train_t2i_256_vs_amax"], result["train_both_256_vs_amax"] = trains[0]["amax"], trains[1]["amax"]
    result["train_t2i_256_vs_max_values"] = trains[0]["max_values"]
    result["train_both_256_vs_max_values"] = trains[1]["max_values"]
    result["train_ragged_vs_amax"] = trains[-1]["amax"]
    result["retained_vs_similarity"] = retained(batch)
    if full:
        kept = retained(1024) * 4 * 1024**2 * PATCHES * WORDS
        result["saved_gb_both_256_at_1024"] = kept / 1e9
    if DEVICE == "cpu":
        result["peak_vs_similarity"] = peak_memory(96)
    return {**result, "forward": forwards, "train": trains}


def machine() -> str:
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [f"{row[name]:.3g}" if isinstance(row.get(name), float) else str(row.get(name, "")) for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--growth", nargs=2, metavar=("FORM", "B"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.growth:
        print(growth(arguments.growth[0], int(arguments.growth[1])))
        return
    result = measure(arguments.full)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['machine']}, {result['threads']} threads, torch {torch.__version__}, {DTYPE}\n")
    print("Forward, share of the product's rate\n\n" + table(result["forward"]) + "\n")
    print("Forward and backward, times ours\n\n" + table(result["train"]) + "\n")
    print(f"kept for backward, both directions, over the similarities: {result['retained_vs_similarity']:.4f}")
    if "saved_gb_both_256_at_1024" in result:
        print(f"the same at B = 1,024: {result['saved_gb_both_256_at_1024']:.3f} GB")
    if "peak_vs_similarity" in result:
        print(
            "peak memory over the similarities, B = 96:",
            {k: round(v, 2) for k, v in result["peak_vs_similarity"].items()},
        )


if __name__ == "__main__":
    main()
