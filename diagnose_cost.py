"""What a picture and a pair cost at a rung of the ladder, measured: passes, CPU time, bytes.

On CPU and one thread, so that threads that wait for others count as nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .diagnose import Course, Step
    from .eval.ladder import Cost
    from .stores.items import Item

# Passes of the image tower that a measurement may take: of 239 windows it sees 2 images, of 18 it sees 28.
PASSES = 512
FEW = 2  # images whose extraction is taken off, with what a call costs however few there are
WARM, TIMED = 8, 64  # groups scored before the clock starts, and after


def passes(step: Step, items: Sequence[Item]) -> float:
    """Passes of the image tower for a picture at a rung, the mean; cached tokens count the one that made them."""
    from .pipeline.regions import source_of, view_count

    if not step.level.startswith("regions") or source_of(step.level).pooled:
        return 1.0
    images = {item.key: item for item in items if item.kind == "image"}
    return sum(view_count(item, step.level) for item in images.values()) / len(images)


@dataclass(frozen=True)
class Meter:
    """Measures what pictures and pairs cost, on `count` images at most and on CPU, in stores below `folder`."""

    course: Course
    count: int
    folder: Path
    known: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)

    def cost(self, step: Step) -> Cost:
        """Without images only the passes are known."""
        from .eval.ladder import Cost

        each = passes(step, self.course.items)
        if not self.count:
            return Cost(each)
        images = list({item.key: item for item in self.course.items if item.kind == "image"}.values())
        room = max(FEW, min(self.count, int(PASSES / each), len(images) - 2 * FEW))
        images = images[: 2 * FEW + room]
        with one_thread():
            before = self.extracted(step.backbone, "tokens", images)[0] if step.kind == "pooled" else 0.0
            cpu, size = self.extracted(step.backbone, step.cached or step.level, images)
            return Cost(each, before + cpu, self.pair_ms(step), size, max(0, len(images) - 2 * FEW))

    def extracted(self, backbone: str, level: str, images: Sequence[Item]) -> tuple[float, int]:
        """CPU milliseconds and bytes of one image at a level.

        The weights are loaded and a first pass made before the clock starts. A call with few images is taken off, so
        that what a part costs however small it is, is not counted as an image's.
        """
        from .pipeline.encoder import load_encoder
        from .pipeline.extract import extract
        from .pipeline.forward import plain
        from .pipeline.plan import ExtractConfig
        from .pipeline.regions import is_dense
        from .pipeline.stored import spec_named
        from .stores.store import Store

        if (backbone, level) in self.known:
            return self.known[backbone, level]
        spent = []
        # Beside no cached states, so that the pass is counted.
        folder = self.folder / "dense" if is_dense(level) else self.folder
        with self.course.workspace.used():
            spec = spec_named(backbone, level, "float16", self.course.workspace)
            encoder, config = load_encoder(plain(spec)), ExtractConfig(batch_size=64, workers=1)
            for some in (images[:FEW], images[FEW : 2 * FEW], images[2 * FEW :]):
                started = time.process_time()
                extract(some, spec, folder / spec.folder, config, encoder=encoder)
                spent.append(time.process_time() - started)
        _, few, many = spent
        left = len(images) - 2 * FEW
        slope = (many - few) / (left - FEW) if left > FEW and many > few else many / max(1, left)
        parts = [part for part in Store.open(folder / spec.folder).parts if part.kind == "image"]
        largest = max(parts, key=lambda part: part.rows)
        size = sum(int(file["bytes"]) for name, file in largest.files.items() if name.startswith("images/"))
        self.known[backbone, level] = 1000 * slope, round(size / largest.rows)
        return self.known[backbone, level]

    def pair_ms(self, step: Step) -> float:
        """CPU milliseconds of one scored pair, from the workspace's store."""
        from . import api
        from .eval.scoring import judge, score_groups
        from .pipeline.stored import spec_named

        course = self.course
        store = api.store_of(spec_named(step.backbone, step.level, "float16", course.workspace), course.workspace)
        heads, runs = ([step.head] if step.head else []), ([step.run] if step.run else [])
        (entry,) = api.scorers(store, heads, runs, course.workspace, "cpu")
        have = store.keys("image") | store.keys("text")
        groups = [group for group in course.groups if {*group.images, *group.captions} <= have][:TIMED]
        asked = judge(step.label, entry.scorer, store)
        score_groups(groups[:WARM], asked, step.label)
        started = time.process_time()
        values = score_groups(groups, asked, step.label)
        return 1000 * (time.process_time() - started) / len(values)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch computes on one thread inside."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
