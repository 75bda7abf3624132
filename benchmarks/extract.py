"""How fast images become features in a store, beside the bare forward pass and the scripts that people write.

    python benchmarks/extract.py [--full] [--json] [--folder build] [--only WHAT] [--clip-retrieval PYTHON]

JPEG files of 640 × 480, made from the photographs of tests/data/coco, no two alike, go through `compal extract` into a
real store with all tokens; ViT-B/32 and ViT-B/16 at random initialisation, float32, the same batch size everywhere.
Encoders are loaded before. All candidates take turns in each round; a ratio is the median of the ratios in a round.

vitb32_vs_forward, vitb16_vs_forward
    images/s from the files to the committed store over those of `model.encode_image` on float32 pixels in memory
vs_open_clip_script, vs_clip_retrieval
    the same, ViT-B/32, over a plain script (DataLoader with 2 workers, pooled embeddings only) and over
    clip-retrieval's worker in the environment of --clip-retrieval; null without, `why` says why
breakdown
    seconds of one run by what they went into. `decode` and `write` are of threads beside the forward pass, the rest
    of its own thread: `wait` is for pixels, `forward` with `copy` to the device, `convert` to the stored dtype
peak_memory_10k_vs_1k
    peak resident memory of an extraction of 10,000 small images over that of 1,000
rerun_10k_s
    seconds of the same extraction of 10,000 images and as many captions once more, in a process of its own
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from _extract_peers import bare, clip_retrieval, script
from _store_limits import in_turns, machine, ratio
from PIL import Image, ImageEnhance

from compal.pipeline import decode, forward, work
from compal.pipeline.encoder import load_encoder, resolve
from compal.pipeline.extract import extract
from compal.pipeline.plan import ExtractConfig
from compal.stores.items import Item
from compal.stores.store import Store

DATA = Path(__file__).parent.parent / "tests" / "data" / "coco" / "val2017"
BATCH = 32
MODELS = {"vitb32": "ViT-B-32", "vitb16": "ViT-B-16"}


def photographs(folder: Path, count: int, size: tuple[int, int] = (640, 480)) -> list[Path]:
    """JPEG files, no two alike: the four photographs at `size`, each a little brighter than the one before."""
    folder.mkdir(parents=True)
    sources = [Image.open(path).convert("RGB").resize(size) for path in sorted(DATA.glob("*.jpg"))]
    paths = []
    for number, source in zip(range(count), itertools.cycle(sources), strict=False):
        picture = ImageEnhance.Brightness(source).enhance(0.8 + 0.4 * number / count)
        paths.append(folder / f"{number:06d}.jpg")
        picture.save(paths[-1], quality=92, comment=str(number).encode())
    return paths


class Bench:
    """Files, and what turns them into features. `folder` is deleted by the caller."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say

    def extraction(self, backbone: str, files: list[Path], config: ExtractConfig) -> Callable[[], float]:
        """Images a second from the files to a committed store."""
        spec = resolve(backbone)
        encoder = load_encoder(spec)
        store = self.folder / "store"

        def run() -> float:
            shutil.rmtree(store, ignore_errors=True)
            started = time.perf_counter()
            summary = extract(map(Item.image_file, files), spec, store, config, encoder=encoder)
            seconds = time.perf_counter() - started
            assert summary.images == len(files), summary
            return len(files) / seconds

        run.encoder = encoder  # type: ignore[attr-defined]
        return run

    def model(self, label: str, count: int, rounds: int, python: str) -> dict[str, Any]:
        """One model: the ratios of candidates in turns, and the breakdown of one run."""
        name = MODELS[label]
        files = photographs(self.folder / label, count)
        config = ExtractConfig(batch_size=BATCH)
        ours = self.extraction(f"open_clip:{name}/random", files, config)
        encoder = ours.encoder  # type: ignore[attr-defined]
        candidates = {"compal": ours, "forward": bare(encoder.model, BATCH, count)}
        notes = {}
        if label == "vitb32":
            transform = _transform(name)
            candidates["open_clip script"] = script(encoder.model, transform, files, self.folder / "x.npy", BATCH, 2)
            if python:
                weights = self.folder / "weights.pt"
                torch.save(encoder.model.state_dict(), weights)
                candidates["clip-retrieval"] = lambda: clip_retrieval(
                    python, name, weights, files[0].parent, self.folder / "retrieval", BATCH
                )
                try:
                    candidates["clip-retrieval"]()
                except (RuntimeError, OSError, ValueError) as error:
                    notes["why"] = f"clip-retrieval does not run here: {error}"
                    del candidates["clip-retrieval"]
            else:
                notes["why"] = "no --clip-retrieval PYTHON of an environment that has it"
        for candidate in candidates.values():  # warm
            if candidate is not candidates.get("clip-retrieval"):
                candidate()
        found = in_turns(candidates, rounds)
        with clocked() as clock:
            rate = ours()
        rates = {name: round(statistics.median(values), 2) for name, values in found.items()}
        facts: dict[str, Any] = {f"{label}_vs_forward": round(ratio(found, "compal", "forward"), 3)}
        if label == "vitb32":
            facts["vs_open_clip_script"] = round(ratio(found, "compal", "open_clip script"), 3)
            there = "clip-retrieval" in found
            facts["vs_clip_retrieval"] = round(ratio(found, "compal", "clip-retrieval"), 3) if there else None
        seconds = {"whole": round(count / rate, 3)} | {name: round(value, 3) for name, value in clock.items()}
        return facts | notes | {f"{label}_images_per_s": rates, f"{label}_breakdown_s": seconds}


def _transform(name: str) -> Any:
    import open_clip

    return open_clip.image_transform(open_clip.get_model_config(name)["vision_cfg"]["image_size"], is_train=False)


@contextmanager
def clocked() -> Iterator[dict[str, float]]:
    """Seconds that go into the stages of an extraction meanwhile, by replacing the functions that do them."""
    clock: dict[str, float] = defaultdict(float)
    places = {
        "list": (work.Worker, "_begin"),
        "decode": (decode.Decoder, "_fill"),
        "wait": (decode._Pending, "result"),
        "forward": (forward.Forward, "_images_at"),
        "convert": (forward.Forward, "_sent"),
        "copy": (work.FillingImages, "add"),
        "write": (Store, "write_images"),
        "commit": (Store, "commit"),
    }
    plain = {stage: getattr(owner, name) for stage, (owner, name) in places.items()}

    def timed(stage: str) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return plain[stage](*arguments, **options)
            finally:
                clock[stage] += time.perf_counter() - started

        return run

    for stage, (owner, name) in places.items():
        setattr(owner, name, timed(stage))
    try:
        yield clock
    finally:
        for stage, (owner, name) in places.items():
            setattr(owner, name, plain[stage])


# --- memory and the second time -----------------------------------------------------------------------

MEMORY = """
import resource, sys
from pathlib import Path
from compal.pipeline.encoder import resolve
from compal.pipeline.extract import extract
from compal.pipeline.plan import ExtractConfig
from compal.stores.items import Item
files = sorted(Path(sys.argv[1]).glob("*.jpg"))[: int(sys.argv[3])]
config = ExtractConfig(batch_size=32, part_bytes=16 * 2**20)
summary = extract(map(Item.image_file, files), resolve("random:50x512"), Path(sys.argv[2]), config)
assert summary.images == len(files)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def memory(folder: Path, files: Path, counts: tuple[int, int]) -> dict[str, Any]:
    """Peak resident memory of two extractions, each in a process of its own."""
    peaks = []
    for count in counts:
        store = folder / f"memory-{count}"
        command = [sys.executable, "-c", MEMORY, str(files), str(store), str(count)]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1024)
        shutil.rmtree(store)
    return {
        "peak_memory_10k_vs_1k": round(peaks[1] / peaks[0], 3),
        "peak_memory_mib": [round(peak / 2**20) for peak in peaks],
        "peak_memory_images": list(counts),
    }


def rerun(folder: Path, files: Path, count: int) -> dict[str, Any]:
    """The same command twice, and a dataset that shares 80 % of its images with it."""
    paths = sorted(files.glob("*.jpg"))
    table, shared = folder / "rows.jsonl", folder / "shared.jsonl"
    first, second = range(count), range(count // 5, count + count // 5)
    for path, rows in ((table, first), (shared, second)):
        lines = (json.dumps({"image": str(paths[row]), "caption": f"picture number {row}"}) for row in rows)
        path.write_text("\n".join(lines) + "\n")

    def run(data: Path) -> tuple[float, dict[str, Any]]:
        command = [sys.executable, "-m", "compal", "extract", "--backbone", "random:4x8", "--data", str(data)]
        started = time.perf_counter()
        done = subprocess.run(
            [*command, "--json", "--work", str(folder / "work")], capture_output=True, text=True, check=True
        )
        return time.perf_counter() - started, json.loads(done.stdout)[0]

    once, summary = run(table)
    assert summary["images"] == count, summary
    again, twice = zip(*(run(table) for _ in range(3)), strict=True)
    assert not any(summary["images"] or summary["forward_seconds"] for summary in twice), twice
    extended, more = run(shared)
    return {
        "rerun_10k_s": round(statistics.median(again), 2),
        "rerun_images": count,
        "first_run_s": round(once, 2),
        "shared_80_percent_extracts": more["images"] / count,
        "shared_80_percent_s": round(extended, 2),
    }


def measure(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """All figures, or those of --only."""
    facts: dict[str, Any] = {"machine": machine(bench.folder), "threads": torch.get_num_threads(), "batch_size": BATCH}
    facts["machine"]["torch"] = torch.__version__
    for label, count in (("vitb32", 512 if args.full else 160), ("vitb16", 192 if args.full else 64)):
        if args.only in ("", label):
            bench.say(label)
            facts |= bench.model(label, args.images or count, 5 if args.full else 3, args.clip_retrieval)
            shutil.rmtree(bench.folder / label)
    if args.only in ("", "memory", "rerun"):
        count = 10_000
        bench.say("small images")
        photographs(bench.folder / "small", count + count // 5, (64, 64))
    if args.only in ("", "memory"):
        bench.say("memory")
        facts |= memory(bench.folder, bench.folder / "small", (1000, count))
    if args.only in ("", "rerun"):
        bench.say("rerun")
        facts |= rerun(bench.folder, bench.folder / "small", count)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="where temporary files go")
    parser.add_argument("--only", default="", choices=["", *MODELS, "memory", "rerun"])
    parser.add_argument("--images", type=int, default=0, help="of a model's run; 160 and 64 by default")
    parser.add_argument("--clip-retrieval", default="", metavar="PYTHON", help="of an environment that has it")
    args = parser.parse_args()
    begun = time.perf_counter()

    def say(line: str) -> None:
        print(f"{time.perf_counter() - begun:6.1f} s  {line}", file=sys.stderr, flush=True)

    args.folder.mkdir(parents=True, exist_ok=True)
    folder = args.folder / f"extract-{time.time_ns()}-{os.getpid()}"
    folder.mkdir()
    try:
        found = measure(Bench(folder, say), args)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        if isinstance(value, dict):
            print(name)
            for key, inner in value.items():
                print(f"    {key:<28} {inner}")
        else:
            print(f"{name:<32} {value}")


if __name__ == "__main__":
    main()
