"""Patches in the joint space, each projected on its own: MaskCLIP (arXiv 2112.01071, §3.2), training-free.

The last attention before the joint space hears one patch at a time. A softmax over one key is 1, so that queries and
keys drop out and its values and its output projection remain:

    a tower that pools     examples              reads       a patch x becomes
    its CLS alone          CLIP, EVA02           block:-1    out(V(ln_1(x))) of the last block, without residual and
                                                             MLP; the final norm; the projection
    by attention           SigLIP, PE            tokens      what that attention makes of x alone; the projection
    by CLIP's ResNet       RN50                  tokens      c_proj(v_proj(x)), without positions
    the patches' mean      CLIPA, MobileCLIP-S   tokens      what norm and projection make of x alone

The first and the third are the paper's. The second is the third's counterpart where an MLP follows. In the last no
attention is in the way (as FC-CLIP does, arXiv 2308.02487); of MobileCLIP-S the mean over patches is the tower's own
vector exactly. For CoCa, whose attention answers a captioner too, none is published, and none is made up here.

States are read as the store keeps them, so that one pass of the tower and cached states give the same vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from ..errors import InputError
from ..stores.items import Item
from ..stores.spec import FeatureSpec
from .decode import DecodedBatch
from .filling import FillingImages, ImageFeatures, named
from .regions import boxes_of, checked, source_of
from .roi import Cells, RegionPool, Stored, seen
from .towers import grid_of

if TYPE_CHECKING:
    from .encoder import Encoder
    from .forward import Array
    from .plan import PlannedPart

LAST, ENTERING = "tokens", "block:-1"
BLOCKS = ("ResidualAttentionBlock", "CLIPEncoderLayer", "MetaClip2EncoderLayer", "Block", "EvaBlock",
          "EvaBlockPostNorm")  # fmt: skip


def reads(images: Any) -> str:
    """The level whose states a dense projection of an image tower reads: "tokens" or "block:-1".

    Raises `InputError` saying why the tower has none.
    """
    visual: Any = getattr(images, "visual", None)
    kind = type(images).__name__
    if kind == "ResNetImages":
        return LAST
    if kind == "TransformersImages":
        return LAST if images.projection is None else _entering(images)
    if kind == "NativeImages":
        if visual.attn_pool is not None:
            raise InputError(
                "its attention pooling answers a captioner too, and no dense projection of it is published"
            )
        pools = {"tok": "class", "avg": "average"}.get(visual.pool_type, visual.pool_type)
    else:
        trunk = visual.trunk
        if "pool" in getattr(visual.head, "_modules", {}):
            raise InputError("its pooling has positions of its own, so that no patch can stand alone")
        attends = getattr(trunk, "attn_pool", None) is not None
        pools = "average" if attends or getattr(trunk, "global_pool", "") != "token" else "class"
    if pools == "class":
        return _entering(images)
    if pools != "average":
        raise InputError(f"its pooling '{pools}' defines no dense projection")
    return LAST


def _entering(images: Any) -> str:
    if not images.blocks:
        raise InputError("it pools a CLS and has no last block to enter")
    if type(images.modules[-1]).__name__ not in BLOCKS:
        raise InputError(f"the values of blocks of kind {type(images.modules[-1]).__name__} are not known")
    return ENTERING


def reads_or_why(images: Any) -> str:
    """`reads`, or the reason why there is nothing to read: what `encoder.at_level` takes."""
    try:
        return reads(images)
    except InputError as error:
        return error.what


@dataclass(frozen=True)
class DensePool:
    """A tower's dense projection, and means of it over regions. Build it with `DensePool.of`."""

    pool: RegionPool
    images: Any

    @classmethod
    def of(cls, encoder: Encoder, states: FeatureSpec) -> DensePool:
        """The projection of an encoder for states of a spec of level "tokens" or "block:-1".

        Raises `InputError` for a tower that has none, and for one whose pooling is not of the kind that `reads` took
        it for.
        """
        pool = RegionPool.of(encoder, states)
        images = getattr(encoder, "images", None)
        if (reads(images) == ENTERING) != (pool.rule == "class"):
            what = f"{states.backbone} pools by '{pool.rule}', which its dense projection does not know"
            raise InputError(what, "Adapt pipeline/dense.py.")
        return cls(pool, images)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the patches."""
        return self.pool.grid

    @torch.no_grad()
    def maps(self, states: Tensor) -> Tensor:
        """States (B, P, D), prefix first, → the patches in the joint space (B, rows · columns, E), row by row, float32
        whatever the autocast, not normalised, on the encoder's device."""
        pool, device = self.pool, torch.device(getattr(self.pool.encoder, "device", "cpu"))
        states = states.to(device, torch.float32)
        prefix, patches = states[:, : pool.prefix], states[:, pool.prefix :]
        batch, count, _ = patches.shape
        with torch.autocast(device.type, enabled=False):
            if hasattr(getattr(self.images, "visual", None), "attnpool"):
                attention = self.images.visual.attnpool
                found: Tensor = attention.c_proj(attention.v_proj(patches))
                return found
            if pool.rule == "class":
                alone = self.images.finish(_values(self.images.modules[-1], patches)).flatten(0, 1)[:, None]
                found = pool.run(len(alone), pool.prefix, lambda rows: alone[rows].expand(-1, pool.prefix, -1))
            else:
                alone = patches.flatten(0, 1)[:, None]
                owners = torch.arange(batch, device=device).repeat_interleave(count)
                found = pool.run(
                    len(alone), 1 + pool.prefix, lambda rows: pool.behind(prefix[owners[rows]], alone[rows])
                )
        return found.reshape(batch, count, -1)

    def __call__(self, states: Tensor, cells: Sequence[Cells]) -> list[Tensor]:
        """States (B, P, D) of images and the cells of their regions → the vectors of each, (R, E) float32, on the
        CPU."""
        maps = self.maps(states).cpu()
        return [means(own, places) for own, places in zip(maps, cells, strict=True)]


def means(patches: Tensor, cells: Cells) -> Tensor:
    """Patches (n, E) in the joint space and the cells of R regions → the regions (R, E)."""
    if cells.each:
        return patches
    weights = torch.from_numpy(cells.masks).to(patches.dtype)
    return ((weights / weights.sum(1, keepdim=True)) @ patches)[torch.from_numpy(cells.back)]


def _values(block: Any, patches: Tensor) -> Tensor:
    """What a block's attention adds to each patch (B, n, D) that it hears alone."""
    kind = type(block).__name__
    if kind == "ResidualAttentionBlock":
        attention, width = block.attn, patches.shape[-1]
        bias = None if attention.in_proj_bias is None else attention.in_proj_bias[2 * width :]
        heard = linear(block.ln_1(patches), attention.in_proj_weight[2 * width :], bias)
        own: Tensor = block.ls_1(attention.out_proj(heard))
    elif hasattr(block, "self_attn"):  # transformers'
        own = block.self_attn.out_proj(block.self_attn.v_proj(block.layer_norm1(patches)))
    else:  # timm's attentions have norms and gates of their own: they are run, on sequences of one
        alone = patches.flatten(0, 1)[:, None]
        heard = block.norm1(block.attn(alone)) if kind == "EvaBlockPostNorm" else block.attn(block.norm1(alone))
        gamma = getattr(block, "gamma_1", None)
        heard = getattr(block, "ls1", torch.nn.Identity())(heard) if gamma is None else gamma * heard
        own = heard.reshape(patches.shape)
    return own


class FillingDense(FillingImages):
    """A part of images at a dense level, from a pass of the tower; what it holds is cast by `stored`."""

    def __init__(self, part: PlannedPart, spec: FeatureSpec, stored: Stored, image_size: tuple[int, int]) -> None:
        super().__init__(part, spec)
        self._stored = stored
        self._image_size = image_size

    def add(self, batch: DecodedBatch, features: ImageFeatures, regions: Sequence[Array] | None = None) -> None:
        """Append a batch; `features` are the dense maps (B, n, E) float32 and pooled vectors (B, E)."""
        maps, pooled = features
        own: list[Array] = []
        refused: dict[int, str] = {}
        for row, (item, size) in enumerate(zip(batch.items, batch.sizes, strict=True)):
            assert maps is not None
            try:
                found = self._rows(item, size, torch.from_numpy(maps[row]))
            except ValueError as error:
                refused[row] = str(error)
                own.append(np.empty(0))
                continue
            own.append(self._stored(found, [named(item)] * len(found)) if len(found) else np.empty(0))
        self.take(batch, (None, pooled), own, refused)

    def _rows(self, item: Item, size: tuple[int, int], patches: Tensor) -> Tensor:
        source = source_of(self.spec.level)
        if source.each:
            return patches
        boxes = boxes_of(item, self.spec.level)
        for box in boxes if source.boxed else ():
            checked(box)
        if not boxes:
            return patches[:0]
        grid = grid_of(len(patches), self._image_size)
        return means(patches, Cells.of(boxes, grid, seen(size, self.spec.preprocess)))
