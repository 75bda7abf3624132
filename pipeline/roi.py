"""Region vectors pooled from cached patch tokens: no crop is encoded and the image tower never runs.

A region takes the patch tokens whose cell has its centre in the box, or the nearest cell where there is none; cells
lie in what the tower saw, so a box is first carried through the resizing and the centre crop. They are pooled as the
tower pools a whole image, found out once per tower by giving its pooling other tokens:

    class      it reads prefix tokens alone (CLIP's CLS): the mean of the region's states stands in for them
    average    it reads patches by their mean alone: the region's mean
    attention  it reads patches otherwise (SigLIP, PE, CoCa, ModifiedResNet): over the region's tokens alone

A pooling that reads prefix and patches (CoCa) gets the region's patches without the prefix, which holds the whole
image. Pooling patches of one pass is what structure-guided inference names as its remedy for the cost of crops
(arXiv 2506.09691). Its price: a patch of a deep layer has seen the whole image, and patch states of a tower that is
trained on its CLS alone are not made to be compared with texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from ..errors import InputError, MissingFeatures
from ..stores.items import Box, Item
from ..stores.rows import ImageRows, Quarantined
from ..stores.spec import FeatureSpec
from ..stores.store import Store
from .encoder import Encoder, at_level
from .filling import Filling, named
from .forward import Array, Forward
from .regions import boxes_of, checked, regions_of, source_of, states_of

# Vectors (N, E) float32 and the names of their items → as they are stored.
Stored = Callable[[Tensor, Sequence[str]], Array]
Rule = Literal["class", "average", "attention"]
# Centres on a box's edge count as inside: edges that are fractions of a grid are off by rounding.
EDGE = 1e-6
# Vectors that a pooling takes at once, in values: 64 MiB of float32.
AT_ONCE = 16 * 2**20
IMAGES = 64  # read together


def token_store(spec: FeatureSpec, folder: Path) -> Store:
    """The store of level tokens, beside the store `folder`, whose tokens the regions of `spec` are pooled from: the
    same backbone, weights, preprocessing, dtype and precision.

    Raises `MissingFeatures` naming the command that makes it.
    """
    found = state_store(spec, folder)
    if found is not None:
        return found
    level = states_of(spec)
    precision = "" if spec.precision == "float32" else f" --precision {spec.precision}"
    precision += " --jpeg reduced" if "jpeg" in spec.preprocess else ""
    raise MissingFeatures(
        f"level '{spec.level}' pools cached tokens, and {Path(folder).parent} has none of {spec.backbone} as"
        f" {spec.dtype} at precision {spec.precision}",
        f"Make them: compal extract --backbone {spec.backbone} --level {level} --dtype {spec.dtype}{precision}",
    )


def state_store(spec: FeatureSpec, folder: Path) -> Store | None:
    """The store, beside the store `folder`, of the states that the regions of `spec` are made of; None without one."""
    kept: dict[str, str] = {key: text for key, text in spec.extra.items() if key in ("regions", "segments")}
    for path in sorted(Path(folder).parent.glob("*/spec.json")):
        try:
            store = Store.open(path.parent)
        except InputError:
            continue  # another version's
        if store.spec.level == states_of(spec) and store.spec.dtype == spec.dtype:
            cut = at_level(store.spec, spec.level, spec.dtype, dense=store.spec.level)
            cut.extra.update(kept)
            if cut == spec:
                return store
    return None


def cells_in(box: Box, grid: tuple[int, int], view: Box = (0.0, 0.0, 1.0, 1.0)) -> Array:
    """Which cells of a (rows, columns) grid over `view` belong to `box`, (rows · columns,) bool, row by row.

    Both are fractions of the image. At least one cell belongs: that whose centre is nearest to the box's. Raises
    `ValueError` for a box that is empty, not finite, or outside the image.
    """
    x0, y0, x1, y1 = checked(box)
    rows, columns = grid
    left, top, right, bottom = view
    across = left + (np.arange(columns) + 0.5) / columns * (right - left)
    down = top + (np.arange(rows) + 0.5) / rows * (bottom - top)
    inside = np.outer((down >= y0 - EDGE) & (down <= y1 + EDGE), (across >= x0 - EDGE) & (across <= x1 + EDGE)).ravel()
    if not inside.any():
        row = int(np.abs(down - (y0 + y1) / 2).argmin())
        inside[row * columns + int(np.abs(across - (x0 + x1) / 2).argmin())] = True
    return cast(Array, inside)


def seen(size: tuple[int, int], preprocess: dict[str, str]) -> Box:
    """What part of an image of (width, height) pixels the tower sees, in fractions of the image: less than all of it
    after a centre crop, more where it is padded. Raises `InputError` for a resizing that is not known."""
    width, height = size
    mode = preprocess.get("resize", "")
    if mode in ("", "squash"):
        return 0.0, 0.0, 1.0, 1.0
    if mode not in ("shortest", "longest") or "x" not in preprocess.get("size", ""):
        raise InputError(f"where the patches of resizing '{mode}' lie is not known", "Use --level regions.")
    tall, wide = map(int, preprocess["size"].split("x"))
    # Pixels of the picture per pixel of the image: the crop keeps what covers it, the padding adds what is lacking.
    scale = (max if mode == "shortest" else min)(wide / width, tall / height)
    across, down = wide / scale / width, tall / scale / height
    return (1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of an image's regions: those that differ, and which of them each region has.

    masks  (U, rows · columns) bool
    back   (R,) which of the U
    each   whether they are all cells, one by one, in order
    """

    masks: Array
    back: Array
    each: bool = False

    @classmethod
    def of(cls, boxes: Sequence[Box] | None, grid: tuple[int, int], view: Box = (0.0, 0.0, 1.0, 1.0)) -> Cells:
        """The cells of one or more boxes, of None every cell by itself; raises as `cells_in`. Of the windows of a grid
        they are found once."""
        if boxes is None:
            count = grid[0] * grid[1]
            return cls(np.eye(count, dtype=bool), np.arange(count), True)
        return _cells(boxes, grid, view) if isinstance(boxes, tuple) else _cells(tuple(boxes), grid, view)


@lru_cache(512)
def _cells(boxes: tuple[Box, ...], grid: tuple[int, int], view: Box) -> Cells:
    masks, back = np.unique(np.stack([cells_in(box, grid, view) for box in boxes]), axis=0, return_inverse=True)
    return Cells(masks, back.reshape(-1))


@dataclass(frozen=True)
class RegionPool:
    """A tower's pooling over some of the patch tokens. Build it with `RegionPool.of`.

    rule          see the module
    reads_prefix  whether the pooling reads the prefix beside the patches
    """

    encoder: Encoder
    width: int
    prefix: int
    grid: tuple[int, int]
    rule: Rule
    reads_prefix: bool

    @classmethod
    @torch.no_grad()
    def of(cls, encoder: Encoder, tokens: FeatureSpec) -> RegionPool:
        """The pooling of an encoder for tokens of a spec. Raises `InputError` if the tokens have no grid."""
        count, width = tokens.image_shape
        prefix, (rows, columns) = tokens.image_prefix, tokens.image_grid
        if rows * columns + prefix != count or not count:
            raise InputError(f"the tokens of {tokens.backbone} are no grid of patches", "Use --level regions.")
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(1, count, width, generator=generator)
        other = torch.randn(1, count, width, generator=generator)
        own = _pooled(encoder, probe)

        def same(changed: Tensor) -> bool:
            found = _pooled(encoder, changed)
            return float((found - own).abs().max()) <= 1e-4 * float(own.abs().max())

        if same(torch.cat([probe[:, :prefix], other[:, prefix:]], 1)):
            return cls(encoder, width, prefix, (rows, columns), "class", True)
        reads_prefix = prefix > 0 and not same(torch.cat([other[:, :prefix], probe[:, prefix:]], 1))
        mean = probe[:, prefix:].mean(1, keepdim=True).expand(-1, count - prefix, -1)
        average = same(torch.cat([probe[:, :prefix], mean], 1))
        return cls(encoder, width, prefix, (rows, columns), "average" if average else "attention", reads_prefix)

    @torch.no_grad()
    def __call__(self, tokens: Tensor, cells: Sequence[Cells]) -> list[Tensor]:
        """Tokens (B, P, D) of images and the cells of their regions → the vectors of each, (R, E) float32, on the
        CPU."""
        tokens = tokens.to(getattr(self.encoder, "device", "cpu"), torch.float32)
        prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        masks = torch.from_numpy(np.concatenate([own.masks for own in cells])).to(tokens.device)
        counts = [len(own.masks) for own in cells]
        owners = torch.repeat_interleave(torch.arange(len(tokens)), torch.tensor(counts)).to(tokens.device)
        found = (self._attended if self.rule == "attention" else self._averaged)(prefix, patches, masks, owners)
        each = torch.split(found.cpu(), counts)
        return [rows[torch.from_numpy(own.back)] for rows, own in zip(each, cells, strict=True)]

    def _averaged(self, prefix: Tensor, patches: Tensor, masks: Tensor, owners: Tensor) -> Tensor:
        weights = masks.float() / masks.sum(1, keepdim=True)
        each = torch.split(weights, torch.bincount(owners, minlength=len(patches)).tolist())
        means = torch.cat([own @ states for own, states in zip(each, patches, strict=True)])[:, None]
        if self.rule == "class":
            return self.run(len(means), self.prefix, lambda rows: means[rows].expand(-1, self.prefix, -1))
        return self.run(len(means), 1 + self.prefix, lambda rows: self.behind(prefix[owners[rows]], means[rows]))

    def _attended(self, prefix: Tensor, patches: Tensor, masks: Tensor, owners: Tensor) -> Tensor:
        visual: Any = getattr(getattr(self.encoder, "images", None), "visual", None)
        if hasattr(visual, "attnpool"):  # its positions belong to the cells, so that tokens cannot be left out
            return torch.cat([
                _resnet_pooled(visual.attnpool, states, masks[owners == number])
                for number, states in enumerate(patches)
            ])  # fmt: skip
        # Regions of as many tokens go together: no pooling has a mask that all towers share.
        counts, order, found = masks.sum(1), [], []
        for count in sorted(set(counts.tolist())):
            same = (counts == count).nonzero()[:, 0]
            chosen = masks[same].nonzero()[:, 1].reshape(len(same), count)

            def taken(rows: slice, same: Tensor = same, chosen: Tensor = chosen) -> Tensor:
                own = owners[same[rows]]
                return self.behind(prefix[own], patches[own[:, None], chosen[rows]])

            order.append(same)
            found.append(self.run(len(same), count + self.prefix, taken))
        pooled = torch.cat(found)
        return pooled[torch.cat(order).argsort().to(pooled.device)]

    def behind(self, prefix: Tensor, patches: Tensor) -> Tensor:
        """The patches (N, n, D) as the pooling takes them: behind a prefix that it skips, without one it reads."""
        return patches if self.reads_prefix else torch.cat([prefix, patches], 1)

    def run(self, count: int, length: int, taken: Callable[[slice], Tensor]) -> Tensor:
        """Pool `count` runs of `length` tokens, as many at once as memory is meant for."""
        size = max(1, AT_ONCE // (length * self.width))
        some = [slice(start, start + size) for start in range(0, count, size)]
        return torch.cat([_pooled(self.encoder, taken(rows)) for rows in some])


def _pooled(encoder: Encoder, tokens: Tensor) -> Tensor:
    """Last states → pooled, whatever level the encoder was loaded for."""
    at_last = getattr(encoder, "pool_images_of", None)
    pooled: Tensor = encoder.pool_images(tokens) if at_last is None else at_last("tokens", tokens)
    return pooled.float()


def _resnet_pooled(pool: Any, patches: Tensor, masks: Tensor) -> Tensor:
    """CLIP's `AttentionPool2d` over some cells of each region: their mean asks, they and the mean answer."""
    patches, masks = patches.to(pool.c_proj.weight.device), masks.to(pool.c_proj.weight.device)
    position = pool.positional_embedding
    mean = masks.float() @ patches / masks.sum(1, keepdim=True) + position[0]
    keys = torch.cat([mean[:, None], (patches + position[1:]).expand(len(masks), -1, -1)], 1)
    heads = (len(masks), -1, pool.num_heads, mean.shape[1] // pool.num_heads)
    query, key, value = (
        project(states).reshape(heads).transpose(1, 2)
        for project, states in ((pool.q_proj, mean[:, None]), (pool.k_proj, keys), (pool.v_proj, keys))
    )
    mask = torch.cat([masks.new_ones(len(masks), 1), masks], 1)[:, None, None]
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    projected: Tensor = pool.c_proj(attended.transpose(1, 2).reshape(len(masks), -1))
    return projected


class Tokens:
    """The cached tokens of a store, pooled by region through an encoder. One serves all parts of an extraction.

    dense  they are states that a dense projection reads, and regions are means of it
    """

    def __init__(self, store: Store, encoder: Encoder, dense: bool = False) -> None:
        from .dense import DensePool

        self.store = store
        self.pool = DensePool.of(encoder, store.spec) if dense else RegionPool.of(encoder, store.spec)
        self._table = store.table("image").select(["key", "width", "height"])

    def sizes(self, keys: Sequence[str]) -> list[tuple[int, int]]:
        """(width, height) of images in the store, pixels as stored in their files."""
        import pyarrow as pa

        places = pc.index_in(pa.array(keys, pa.string()), value_set=self._table.column("key"))
        found = self._table.take(places)
        return list(zip(found.column("width").to_pylist(), found.column("height").to_pylist(), strict=True))

    def hold(self, items: Sequence[Item]) -> bool:
        """Whether the store knows all of these images, unreadable ones too."""
        lacking = {item.key for item in items} - self.store.keys("image")
        return lacking <= {row.key for row in self.store.quarantined() if lacking}

    def rows(self, keys: Sequence[str], boxes: Sequence[Sequence[Box] | None]) -> list[Tensor]:
        """The vectors (R, E) float32 of each image's boxes, or of its patches one by one where that is None. Raises
        `MissingFeatures` for images that are not in the store, `ValueError` as `cells_in`."""
        spec = self.store.spec
        found: list[Tensor] = []
        for start in range(0, len(keys), IMAGES):
            some = list(keys[start : start + IMAGES])
            own = boxes[start : start + IMAGES]
            views = [seen(size, spec.preprocess) for size in self.sizes(some)]
            asked = [row for row, one in enumerate(own) if one is None or one]
            rows = [torch.empty(0, spec.pooled_dim)] * len(some)
            if asked:
                tokens = _tensor(self.store.image_tokens([some[row] for row in asked]), spec.dtype)
                cells = [Cells.of(own[row], self.pool.grid, views[row]) for row in asked]
                for row, vectors in zip(asked, self.pool(tokens, cells), strict=True):
                    rows[row] = vectors
            found += rows
        return found


def encode_rois(
    items: Sequence[Item], tokens: Tokens, spec: FeatureSpec, stored: Stored
) -> tuple[ImageRows, list[Quarantined]]:
    """The rows of a part of images at a level of pooled regions, and its items that have none.

    stored  vectors (N, E) float32 and the names of their items → as they are stored (`Forward`'s cast)

    What the token store could not read is refused for its reason, and so are boxes outside the image. Raises
    `MissingFeatures` for images that are not in the store, naming the command that adds them.
    """
    store = tokens.store
    readable, refused = _readable(items, store, spec)
    keys = [item.key for item in readable]
    kept: list[Array] = []
    pooled = store.pooled("image", keys)
    for start in range(0, len(readable), IMAGES):
        some = readable[start : start + IMAGES]
        places = [None if source_of(spec.level).each else boxes_of(item, spec.level) for item in some]
        found = tokens.rows([item.key for item in some], places)
        names = [name for item, rows in zip(some, found, strict=True) for name in [named(item)] * len(rows)]
        flat = stored(torch.cat(found), names)
        ends = np.cumsum([len(rows) for rows in found])
        for own, whole in zip(np.split(flat, ends[:-1]), pooled[start : start + IMAGES], strict=True):
            kept.append(regions_of(np.concatenate([own, whole[None]]), spec.level))
    return ImageRows(keys, [item.source for item in readable], tokens.sizes(keys), kept, pooled), refused


def cast_by(forward: Forward, spec: FeatureSpec) -> Stored:
    """How vectors of a spec are cast; raises `InputError` naming the item of one that cannot be."""

    def stored(vectors: Tensor, names: Sequence[str]) -> Array:
        sent = forward.pooled(vectors, spec, names)
        assert sent is not None
        return sent.result()

    return stored


class FillingPooled(Filling):
    """A part of images at a level of pooled regions: it fills at once, without a pixel."""

    def pool(self, tokens: Tokens, forward: Forward) -> None:
        """Take all rows from cached tokens; the time counts as the pass's. Raises as `encode_rois`."""

        started = time.perf_counter()
        with torch.inference_mode():
            self._rows, self.refused = encode_rois(self.part.items, tokens, self.spec, cast_by(forward, self.spec))
        forward.seconds += time.perf_counter() - started
        self.seen = len(self.part.items)

    def rows(self) -> ImageRows:
        """The rows, once the part is full."""
        return self._rows


def _readable(items: Sequence[Item], store: Store, spec: FeatureSpec) -> tuple[list[Item], list[Quarantined]]:
    reasons: dict[str, str] = {}
    boxed = source_of(spec.level).boxed  # windows need no check, which costs more than pooling them
    known = store.has("image", [item.key for item in items])
    if not known.all():
        reasons = {row.key: row.reason for row in store.quarantined()}
    readable, refused, lacking = [], [], []
    for item, here in zip(items, known, strict=True):
        reason = "" if here else reasons.get(item.key, "")
        if not here and not reason:
            lacking.append(item)
            continue
        try:
            for box in item.boxes if here and boxed else ():
                checked(box)
        except ValueError as error:
            reason = str(error)
        if reason:
            refused.append(Quarantined(item.key, "image", item.source, reason))
        else:
            readable.append(item)
    if lacking:
        raise MissingFeatures(
            f"{store.path} lacks the tokens of {len(lacking):,} of {len(items):,} images (first: {lacking[0].source})",
            f"Add them with the same --data or --benchmark: compal extract --backbone {spec.backbone} --level tokens",
        )
    return readable, refused


def _tensor(array: Array, dtype: str) -> Tensor:
    """Stored tokens as a tensor; numpy has no bfloat16, so its bits come as uint16."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
