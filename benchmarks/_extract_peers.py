"""What extraction is measured against: the bare forward pass, and scripts as people write them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def bare(model: Any, size: int, count: int) -> Callable[[], float]:
    """Images a second of `model.encode_image` on normalised float32 pixels in memory, in batches of `size`."""
    pixels = torch.randn(size, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    def run() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            for start in range(0, count, size):
                model.encode_image(pixels[: min(size, count - start)])
        return count / (time.perf_counter() - started)

    return run


def script(model: Any, transform: Any, files: list[Path], out: Path, size: int, workers: int) -> Callable[[], float]:
    """Images a second of the script that anybody would write: a DataLoader of files, `encode_image`, one .npy of
    pooled embeddings at the end."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    class Photographs(Dataset[Any]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> Any:
            return transform(Image.open(files[index]).convert("RGB"))

    def run() -> float:
        started = time.perf_counter()
        found = []
        with torch.inference_mode():
            for pixels in DataLoader(Photographs(), batch_size=size, num_workers=workers):
                found.append(torch.nn.functional.normalize(model.encode_image(pixels), dim=-1).half().numpy())
        np.save(out, np.concatenate(found))
        return len(files) / (time.perf_counter() - started)

    return run


def clip_retrieval(python: str, name: str, weights: Path, folder: Path, out: Path, size: int) -> float:
    """Images a second of clip-retrieval's own worker in its own environment, from the first file it reads on: loading
    and warming up are left out. Raises `RuntimeError` with the last line of what it said if it fails."""
    code = (
        "import json, sys, time\n"
        "from clip_retrieval.clip_inference import reader\n"
        "from clip_retrieval.clip_inference.worker import worker\n"
        "plain, begun = reader.FilesReader.__iter__, []\n"
        "def timed(self):\n"
        "    begun.append(time.perf_counter())\n"
        "    yield from plain(self)\n"
        "reader.FilesReader.__iter__ = timed\n"
        "worker(tasks=[0], input_dataset=sys.argv[1], output_folder=sys.argv[2], output_partition_count=1,\n"
        "       batch_size=int(sys.argv[3]), num_prepro_workers=2, enable_text=False, use_jit=False,\n"
        "       clip_model=sys.argv[4])\n"
        "print(json.dumps(time.perf_counter() - begun[0]))\n"
    )
    model = f"open_clip:{name}/{weights}"
    done = subprocess.run(
        [python, "-c", code, str(folder), str(out), str(size), model], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it failed")
    count = len(list(folder.glob("*.jpg")))
    return count / float(json.loads(done.stdout.strip().splitlines()[-1]))
