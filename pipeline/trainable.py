"""A dual encoder's towers above a store's cut, with gradients: what a run over `pixels` or `block:-K` tunes.

`features` of images and texts take rows of a store of that level and give last states and pooled embeddings, as the
encoder itself does. Parameters below the cut are frozen: at `block:-K` those of the embedding and the first blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..errors import InputError
from ..stores.spec import FeatureSpec
from .dual_encoder import DualEncoder
from .encoder import block_of, load_encoder, resolve
from .preprocess import from_rows
from .tokenizers import frame
from .tuned import save_towers


class Towers(nn.Module):
    """Both towers of an encoder above the level of `spec`; I images, C captions, D of each tower's last states, E."""

    def __init__(self, encoder: DualEncoder, spec: FeatureSpec) -> None:
        super().__init__()
        if spec.rung not in ("pixels", "block"):
            raise InputError(
                f"no tower can be tuned above the level {spec.level}", "Extract with --level pixels, or block:-K."
            )
        self.depth = block_of(spec.level)
        if self.depth and not encoder.texts.trims:
            raise InputError(
                f"the text tower of {spec.backbone} pools more than its last token", "Extract with --level pixels."
            )
        self.encoder, self.spec = encoder, spec
        self.model: nn.Module = encoder.model
        self.model.requires_grad_(True)
        self._adapted: list[Any] = []  # in a list, since a module that is an attribute would be saved as well
        self._freeze_below()

    def train(self, mode: bool = True) -> Towers:
        """Towers stay as the encoder has them, in evaluation: no dropout, and running statistics are weights that stand
        still. A pass in training would see other rows, and a second pass of the same step would differ."""
        return super().train(False)

    def freeze(self, side: str) -> None:
        """Train no parameter that the features of the "image" or of the "text" side reach."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        with torch.enable_grad():
            pooled = self._probe()[side == "text"]
            reached = torch.autograd.grad(pooled.sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, reached, strict=True):
            parameter.requires_grad_(gradient is None)

    def check_local(self) -> None:
        """Raise `InputError` for towers that cannot pool one of their states alone: maps, averages without the CLS."""
        height, width = self.spec.image_shape
        try:
            with torch.no_grad():
                states, _ = self.image_features(torch.zeros(1, height, width, device=self.encoder.device))
                found = bool(self.image_tokens(states[:, -1:]).isfinite().all())
        except RuntimeError:
            found = False
        if not found:
            raise InputError(f"{self.spec.backbone} pools no patch alone", "Set head.local = false.")

    def image_features(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (I, H, 3·W) with values of 0 to 255, or states (I, P, D) → states (I, P, D), pooled (I, E)."""
        tower = self.encoder.images
        if self.depth:
            states = tower.leave(rows, self.depth)
        else:
            # uint8 is what the transform is exact for; the picture is no parameter and needs no gradient.
            states = tower.states(self.encoder.scaled(from_rows(rows.to(torch.uint8))))
        return states, self._pooled_images(states)

    def text_features(self, rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids as bytes (C, L, 4), or states (C, L, D), real where `mask` (C, L) → states (C, L', D), which of them are
        real (C, L'), pooled (C, E)."""
        lengths = mask.sum(1).tolist()
        if self.depth:
            kept = [row[:length] for row, length in zip(rows, lengths, strict=True)]
            states, ends = self.encoder.texts.leave(kept, self.depth), [length - 1 for length in lengths]
        else:
            states, ends = self._read(rows, mask, lengths)
        padded = pad_sequence(states, batch_first=True)
        real = torch.arange(padded.shape[1], device=padded.device) < _lengths(states, padded.device)[:, None]
        with self._precise():
            pooled = self.encoder.texts.pool([row.float() for row in states], ends)
        return padded, real, pooled

    def image_tokens(self, states: Tensor) -> Tensor:
        """Each patch's state through the tower's own pooling alone: (I, P, D) → (I, P', E) without prefix tokens. Of
        attention pooling that is its value, output and MLP, as C2LIP maps patches (arXiv 2603.25722); of CLIP's it is
        the projection."""
        patches = states[:, self.encoder.images.prefix :] if states.shape[1] > 1 else states
        return self._pooled_images(patches.reshape(-1, 1, states.shape[2])).view(*patches.shape[:2], -1)

    def text_tokens(self, states: Tensor) -> Tensor | None:
        """(C, L, D) → (C, L, E), as `image_tokens`; None where the tower attends to padding, as SigLIP's does: its
        store keeps the padding too, and does not say which tokens are words."""
        if self.encoder.texts.attends:
            return None
        rows = states.reshape(-1, 1, states.shape[2]).float()
        with self._precise():
            return self.encoder.texts.pool(list(rows), [0] * len(rows)).view(*states.shape[:2], -1)

    def adapt(self, rank: int, alpha: float) -> None:
        """Train low-rank additions to all attention and MLP matrices above the cut in place of the weights themselves:
        W + alpha / rank · B A, B zero at first (LoRA, arXiv 2106.09685; FSC-CLIP takes rank 4). Raises `InputError`
        without peft, or for towers of whose layers peft knows none."""
        try:
            from peft import LoraConfig, LoraModel
        except ImportError:
            raise InputError("low-rank tuning needs peft", "pip install 'compal[lora]'") from None
        kinds = (nn.Linear, nn.MultiheadAttention)
        named = {name for name, module in self.model.named_modules() if type(module) in kinds}
        if not named:
            raise InputError(f"{self.spec.backbone} has no layer for low-rank tuning", "Set head.lora = 0.")
        scale: Any = alpha  # peft says int, and divides it by the rank
        config = LoraConfig(r=rank, lora_alpha=scale, target_modules=sorted(named), lora_dropout=0.0, bias="none")
        self._adapted = [LoraModel(self.model, config, "default")]
        self._freeze_below()

    def weights(self) -> dict[str, Tensor]:
        """The state dict of the backbone's own model, low-rank additions added up."""
        if not self._adapted:
            return self.model.state_dict()
        merged: dict[str, Tensor] = copy.deepcopy(self._adapted[0]).merge_and_unload().state_dict()
        return merged

    def _pooled_images(self, states: Tensor) -> Tensor:
        with self._precise():
            return self.encoder.images.pool(states.float())

    def _read(self, rows: Tensor, mask: Tensor, lengths: list[int]) -> tuple[list[Tensor], list[int]]:
        """The states that the encoder would keep of these captions, and which of them it pools."""
        tower = self.encoder.texts
        place = torch.tensor([1, 1 << 8, 1 << 16, 1 << 24], device=rows.device)
        ids = (rows.long() * place).sum(-1).masked_fill(~mask, tower.pad)
        if tower.attends and ids.shape[1] < tower.context_length:
            ids = nn.functional.pad(ids, (0, tower.context_length - ids.shape[1]), value=tower.pad)
        positions = tower.pooled_position(ids)
        found = self.encoder.valid(tower.states(ids), frame(ids, lengths), positions)
        return list(found.tokens or ()), found.pool_index

    def _precise(self) -> Any:
        return torch.autocast(self.encoder.device.type, enabled=False)

    def _probe(self) -> tuple[Tensor, Tensor]:
        """Pooled embeddings of a blank picture and of two words."""
        height, width = self.spec.image_shape
        device = self.encoder.device
        words = torch.zeros(1, 2, self.spec.text_dim, device=device)
        _, image = self.image_features(torch.zeros(1, height, width, device=device))
        _, _, text = self.text_features(words, torch.ones(1, 2, dtype=torch.bool, device=device))
        return image, text

    def _freeze_below(self) -> None:
        """Of what is to be trained, leave what a pass from the cut to the pooled embeddings reaches, whatever the
        family calls it."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        with torch.enable_grad():
            image, text = self._probe()
            reached = torch.autograd.grad(image.sum() + text.sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, reached, strict=True):
            parameter.requires_grad_(gradient is not None)


def open_towers(spec: FeatureSpec, device: str = "cpu") -> Towers:
    """The towers whose inputs a store of `spec` holds, at the weights of its backbone. Raises `InputError` for a level
    or a backbone that has none, and what `load_encoder` raises."""
    encoder = load_encoder(spec, device)
    if not isinstance(encoder, DualEncoder):
        raise InputError(f"{spec.backbone} has no towers to tune", "Choose a backbone whose model has weights.")
    return Towers(encoder, spec)


def save_tuned(folder: Path, spec: FeatureSpec, state: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> Path:
    """Write the state dict of tuned towers as a new `folder` that `--backbone run:ID` reads; see `save_towers`. Raises
    `InputError` for a state that is not the model's."""
    encoder = load_encoder(resolve(spec.backbone, "tokens"))
    assert isinstance(encoder, DualEncoder)
    try:
        encoder.model.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise InputError(f"the tuned weights do not fit {spec.backbone}: {reason}", "Fit them again.") from None
    return save_towers(folder, encoder, spec, provenance)


def _lengths(rows: list[Tensor], device: torch.device) -> Tensor:
    return torch.tensor([len(row) for row in rows], device=device)
