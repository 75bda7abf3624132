"""Where to cut each of open_clip's towers so that its own pooling can be recomputed from cached states.

A tower gives the `states` of its last layer (behind the final norm where the pooling reads it) and `pool`, what it
does with them: `pool(states(x))` is the tower's `forward(x)`. A tower of uniform blocks can also be entered at its
K-th last block: `leave(enter(x, k), k)` is `states(x)`. `check` in `dual_encoder.py` holds every loaded model to
it, so a family that open_clip or timm changes is refused, not cached wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Protocol, cast

from torch import Tensor

from ..errors import InputError

Shape = tuple[int, int]


class ImageTower(Protocol):
    """prefix: how many tokens come before the patch grid; image_size: (height, width) in pixels; blocks: how many
    of its last blocks it can be entered at, 0 for a hierarchical tower."""

    prefix: int
    image_size: Shape
    blocks: int

    def at(self, pixels: Tensor, depths: Collection[int]) -> dict[int, Tensor]:
        """(B, 3, H, W) → by depth the states (B, P, D) that enter the depth-th last block; 0: the last states."""

    def states(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) → the last states (B, P, D)."""

    def enter(self, pixels: Tensor, k: int) -> Tensor:
        """(B, 3, H, W) → the states (B, P, D) that enter the k-th last block."""

    def leave(self, states: Tensor, k: int) -> Tensor:
        """States that enter the k-th last block → the last states."""

    def pool(self, tokens: Tensor) -> Tensor:
        """Last states (B, P, D) → (B, E)."""


class TextTower(Protocol):
    """Beside what an image tower has:

    size     rows of the embedding table
    trims    whether columns of pure padding may be left out exactly
    attends  whether the states of words depend on how much padding follows them
    pad      the id that pads
    """

    width: int
    context_length: int
    size: int
    trims: bool
    attends: bool
    pad: int
    blocks: int

    def at(self, ids: Tensor, depths: Collection[int]) -> dict[int, Tensor]:
        """(B, L) ids → by depth (B, L, D), or (B, L + 1, D) with an appended CLS; depths as of `ImageTower.at`."""

    def states(self, ids: Tensor) -> Tensor:
        """(B, L) ids → the last states."""

    def enter(self, ids: Tensor, k: int) -> Tensor:
        """(B, L) ids → the states that enter the k-th last block."""

    def leave(self, tokens: Sequence[Tensor], k: int) -> list[Tensor]:
        """B of (L, D) that enter the k-th last block, of all positions if the tower `attends` → last states."""

    def pooled_position(self, ids: Tensor) -> list[int]:
        """Which state of each row the tower pools; -1 if it pools several."""

    def pool(self, tokens: Sequence[Tensor], pool_index: Sequence[int]) -> Tensor:
        """B of (L, D) → (B, E)."""


def image_tower(visual: Any) -> ImageTower:
    """The adapter of an open_clip vision tower. Raises `InputError` for a kind that has none."""
    if isinstance(visual, Blocks):  # an adapter already: `hub_towers.py`
        return cast(ImageTower, visual)
    kind = type(visual).__name__
    if kind == "VisionTransformer":
        return NativeImages(visual)
    if kind == "ModifiedResNet":
        return ResNetImages(visual)
    if kind == "TimmModel":
        trunk = type(visual.trunk).__name__
        return TimmBlocks(visual) if trunk in ("VisionTransformer", "Eva") else TimmImages(visual)
    raise InputError(f"image towers of kind {kind} have no adapter", "Add one to pipeline/towers.py.")


def text_tower(model: Any) -> TextTower:
    """The adapter of the text tower of an open_clip model. Raises `InputError` for a kind that has none."""
    from .text_towers import HubTexts, NativeTexts

    text = getattr(model, "text", model)
    if isinstance(text, Blocks):
        return cast(TextTower, text)
    if hasattr(text, "token_embedding"):
        return NativeTexts(text)
    if type(text).__name__ == "HFTextEncoder":
        return HubTexts(text)
    raise InputError(
        f"text towers of kind {type(text).__name__} have no adapter", "Add one to pipeline/text_towers.py."
    )


def grid_of(patches: int, image_size: Shape) -> Shape:
    """(rows, columns) of a row-major grid of `patches` with the aspect of the image."""
    height, width = image_size
    rows = round(math.sqrt(patches * height / width))
    if rows < 1 or patches % rows:
        raise InputError(f"{patches} patches do not fill a grid of the shape {height} x {width}")
    return rows, patches // rows


def _pair(size: Any) -> Shape:
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) else (int(size), int(size))


class Blocks:
    """A tower of uniform blocks between an embedding and a final norm, which can be entered at each of them.

    `context` is what every block takes beside the states: a mask, a rotation of positions, nothing. A tower whose
    context cannot be had from states sets `blocks` to 0.
    """

    def __init__(self, modules: Sequence[Any]) -> None:
        self.modules = modules
        self.blocks = len(modules)

    def embed(self, inputs: Tensor) -> tuple[Tensor, Any]:
        """Inputs of the tower → the states that enter its first block, and the context."""
        raise NotImplementedError

    def block(self, index: int, states: Tensor, context: Any) -> Tensor:
        """States through one block."""
        raise NotImplementedError

    def finish(self, states: Tensor) -> Tensor:
        """What the last block gives → the last states."""
        raise NotImplementedError

    def at(self, inputs: Tensor, depths: Collection[int]) -> dict[int, Tensor]:
        """By depth the states that enter the depth-th last block, from one pass; 0: the last states. Blocks that
        none of them needs are not run."""
        states, context = self.embed(inputs)
        found, count, last = {}, len(self.modules), min(depths)
        for depth in range(count, last - 1, -1):
            if depth in depths:
                found[depth] = states if depth else self.finish(states)
            if depth > last:
                states = self.block(count - depth, states, context)
        return found

    def states(self, inputs: Tensor) -> Tensor:
        return self.at(inputs, (0,))[0]

    def enter(self, inputs: Tensor, k: int) -> Tensor:
        return self.at(inputs, (k,))[k]

    def through(self, states: Tensor, k: int, context: Any) -> Tensor:
        """States that enter the k-th last block → the last states."""
        for index in range(len(self.modules) - k, len(self.modules)):
            states = self.block(index, states, context)
        return self.finish(states)


class NativeImages(Blocks):
    """open_clip's own ViT: CLIP, CLIPA, MetaCLIP, CoCa. One CLS token comes first, whatever is pooled."""

    prefix = 1

    def __init__(self, visual: Any) -> None:
        super().__init__(visual.transformer.resblocks)
        self.visual = visual
        self.image_size = _pair(visual.image_size)
        if visual.attn_pool is not None and visual.attn_pool_contrastive is not None:
            raise InputError("attention pooling of the kind 'parallel' or 'cascade' has no adapter")
        # CoCa's attention pooling and CLIPA's average read the states before the final norm.
        self.normed = visual.attn_pool is None and not visual.final_ln_after_pool

    def embed(self, inputs: Tensor) -> tuple[Tensor, None]:
        return self.visual._embeds(inputs), None

    def block(self, index: int, states: Tensor, context: Any) -> Tensor:
        through: Tensor = self.modules[index](states)
        return through

    def finish(self, states: Tensor) -> Tensor:
        return self.visual.ln_post(states) if self.normed else states

    def leave(self, states: Tensor, k: int) -> Tensor:
        return self.through(states, k, None)

    def pool(self, tokens: Tensor) -> Tensor:
        pooled = self._pooled(tokens)
        return pooled if self.visual.proj is None else pooled @ self.visual.proj

    def _pooled(self, tokens: Tensor) -> Tensor:
        visual = self.visual
        if visual.attn_pool is not None:
            attended: Tensor = visual._global_pool(visual.ln_post(visual.attn_pool(tokens)))[0]
            return attended
        pooled: Tensor = visual._global_pool(tokens)[0]
        return pooled if self.normed else visual.ln_post(pooled)


class _Whole:
    """A tower that is run as a whole: it has a last layer and no uniform blocks."""

    blocks = 0

    def states(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError

    def at(self, pixels: Tensor, depths: Collection[int]) -> dict[int, Tensor]:
        if any(depths):
            raise InputError("this image tower has no uniform blocks to enter")
        return {depth: self.states(pixels) for depth in depths}

    def enter(self, pixels: Tensor, k: int) -> Tensor:
        return self.at(pixels, (k,))[k]

    def leave(self, states: Tensor, k: int) -> Tensor:
        raise InputError("this image tower has no uniform blocks to leave")


class ResNetImages(_Whole):
    """CLIP's ModifiedResNet: the 7 × 7 map before its attention pooling (which adds a 50th, the mean)."""

    prefix = 0

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.image_size = _pair(visual.image_size)

    def states(self, pixels: Tensor) -> Tensor:
        visual = self.visual
        grid: Tensor = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))
        return grid.flatten(2).transpose(1, 2)

    def pool(self, tokens: Tensor) -> Tensor:
        rows, columns = grid_of(tokens.shape[1], self.image_size)
        batch, _, width = tokens.shape
        pooled: Tensor = self.visual.attnpool(tokens.transpose(1, 2).reshape(batch, width, rows, columns))
        return pooled


class TimmImages(_Whole):
    """timm trunks without uniform blocks: ConvNeXt, FastViT (MobileCLIP-S), Swin, ResNet.

    States are those of `forward_features`, normed where `forward_head` reads them so; maps are flattened
    row by row.
    """

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.image_size = _pair(visual.image_size)
        self.prefix = int(getattr(visual.trunk, "num_prefix_tokens", 0))
        self._layout: str | None = None

    def states(self, pixels: Tensor) -> Tensor:
        trunk = self.visual.trunk
        states: Tensor = trunk.forward_features(pixels)
        if states.ndim == 3:
            self._layout = "NLC"
            return states
        # ConvNeXt and FastViT give channels first, Swin channels last.
        self._layout = "NCHW" if states.shape[1] == trunk.num_features else "NHWC"
        return states.flatten(2).transpose(1, 2) if self._layout == "NCHW" else states.flatten(1, 2)

    def pool(self, tokens: Tensor) -> Tensor:
        if self._layout is None:  # only a forward pass tells
            self.states(tokens.new_zeros(1, 3, *self.image_size))
        if self._layout != "NLC":
            batch, patches, width = tokens.shape
            tokens = tokens.reshape(batch, *grid_of(patches, self.image_size), width)
        if self._layout == "NCHW":
            tokens = tokens.permute(0, 3, 1, 2)
        pooled: Tensor = self.visual.head(self.visual.trunk.forward_head(tokens))
        return pooled


class TimmBlocks(Blocks):
    """timm's `VisionTransformer` (SigLIP, MobileCLIP-B, ViTamin behind its convolutions) and `Eva` (EVA02,
    PE-Core): as their `forward_features`, cut between the blocks."""

    def __init__(self, visual: Any) -> None:
        super().__init__(visual.trunk.blocks)
        self.visual = visual
        self.image_size = _pair(visual.image_size)
        self.prefix = int(visual.trunk.num_prefix_tokens)
        self.rotary = type(visual.trunk).__name__ == "Eva"

    def embed(self, inputs: Tensor) -> tuple[Tensor, Any]:
        trunk = self.visual.trunk
        states, rotation = trunk.patch_embed(inputs), None
        if self.rotary:
            states, rotation = trunk._pos_embed(states)
        else:
            states = trunk.patch_drop(trunk._pos_embed(states))
        return trunk.norm_pre(states), rotation

    def block(self, index: int, states: Tensor, context: Any) -> Tensor:
        if not self.rotary:
            through: Tensor = self.modules[index](states)
            return through
        # Mixed rotations differ from block to block.
        mixed = context is not None and getattr(self.visual.trunk, "rope_mixed", False)
        rotated: Tensor = self.modules[index](states, rope=context[index] if mixed else context)
        return rotated

    def finish(self, states: Tensor) -> Tensor:
        normed: Tensor = self.visual.trunk.norm(states)
        return normed

    def leave(self, states: Tensor, k: int) -> Tensor:
        # Rotations depend on the grid alone: those of a blank image are everyone's.
        context = self.embed(states.new_zeros(1, 3, *self.image_size))[1] if self.rotary else None
        return self.through(states, k, context)

    def pool(self, tokens: Tensor) -> Tensor:
        pooled: Tensor = self.visual.head(self.visual.trunk.forward_head(tokens))
        return pooled
