"""A frozen text decoder of transformers that tells a caption, given one vector of it: what READ-CLIP learns from.

Weights are read from safetensors alone, and no code of a model's folder is run.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...errors import InputError, UsageError
from ...hub import is_offline, quietly, reachable
from ..scorer import full

RANDOM = "random"
_IGNORED = -100  # of `cross_entropy`
_CURE = (
    "Set loss.decoder to org/name of a text decoder on the hub, or a folder with config.json, safetensors and the"
    " tokenizer, as save_pretrained writes them; random is a tiny one for a try."
)


class Decoder(nn.Module):
    """The mean cost, over their tokens, of captions given vectors: (N, E) and N texts → a scalar.

    `projection` (E → D, no bias) is trained. The decoder is frozen, without dropout, and outside of this module's
    state, so that no checkpoint holds it; it follows the projection's device and dtype.

    Raises `InputError` without transformers, or for a decoder or a tokenizer that cannot be loaded or do not fit,
    `UsageError` for a seed that is no number.
    """

    def __init__(self, name: str, width: int, longest: int) -> None:
        super().__init__()
        model, self._tokenizer = _open(name)
        self.projection = nn.Linear(width, int(model.get_input_embeddings().weight.shape[1]), bias=False)
        self._frozen = [model]  # in a list, since a module that is an attribute would be saved as well
        self._longest = longest
        self._ids: dict[str, array[int]] = {}

    def forward(self, vectors: Tensor, captions: Sequence[str]) -> Tensor:
        """`vectors` are unit vectors: √E gives them the length that a LayerNorm would."""
        weight = self.projection.weight
        model = self._frozen[0].to(device=weight.device, dtype=weight.dtype)
        states = self.projection(vectors.to(weight.dtype) * vectors.shape[1] ** 0.5)[:, None]
        rows = [torch.tensor(self._tokens(caption)) for caption in captions]
        targets = pad_sequence(rows, batch_first=True, padding_value=_IGNORED).to(weight.device)
        logits = _logits(model, states, targets)
        return F.cross_entropy(full(logits).flatten(0, 1), targets.flatten(), ignore_index=_IGNORED)

    def _tokens(self, caption: str) -> list[int]:
        """Ids with an end, where the tokenizer has one; each caption is cut into them once."""
        if caption not in self._ids:
            end = self._tokenizer.eos_token_id
            ids = self._tokenizer(caption, verbose=False)["input_ids"]
            ids = ids[:-1] if ids and ids[-1] == end else ids
            kept = ids[: self._longest] if end is None else [*ids[: self._longest - 1], end]
            self._ids[caption] = array("l", kept)
        return self._ids[caption].tolist()


def _logits(model: Any, states: Tensor, targets: Tensor) -> Tensor:
    """(N, L, vocabulary): position l has seen the state (N, 1, D) and the targets (N, L) before l, nothing else.
    Padding stands behind, where no real token sees it."""
    before = targets[:, :-1].clamp(min=0)
    if not model.config.is_encoder_decoder:
        words = model.get_input_embeddings()(before)
        given: dict[str, Any] = {"inputs_embeds": torch.cat([states.to(words.dtype), words], 1)}
    else:
        start = torch.full_like(targets[:, :1], _start(model))
        given = {"encoder_outputs": (states,), "decoder_input_ids": torch.cat([start, before], 1)}
    logits: Tensor = model(**given, use_cache=False).logits
    return logits


def _start(model: Any) -> int:
    for config in (model.config, model.generation_config):
        if getattr(config, "decoder_start_token_id", None) is not None:
            return int(config.decoder_start_token_id)
    raise InputError(
        "the configuration of this decoder names no token to start with", "Set decoder_start_token_id in config.json."
    )


def _open(name: str) -> tuple[Any, Any]:
    """The frozen model and its tokenizer."""
    try:
        import transformers
    except ImportError:
        raise InputError("loss 'read' needs transformers", "pip install 'compal[hf]'") from None
    with quietly(), torch.random.fork_rng():
        model, tokenizer = _tiny(transformers, name) if _is_random(name) else _pretrained(transformers, name)
    if model.config.is_encoder_decoder:
        encoder = model.get_encoder()
        for part, _ in list(encoder.named_children()):
            delattr(encoder, part)  # its outputs are given: no memory for its weights
    model = model.requires_grad_(False).eval()
    _check_fit(model, tokenizer, name)
    _check_causal(model, name)
    return model, tokenizer


def _is_random(name: str) -> bool:
    return name == RANDOM or name.startswith(f"{RANDOM}:")


def _tiny(transformers: Any, name: str) -> tuple[Any, Any]:
    """T5 of two layers and width 32 at random, over bytes."""
    seed = name.partition(":")[2] or "0"
    if not seed.isdecimal():
        raise UsageError(f"loss.decoder = '{name}' has no number for a seed", "Example: random:1")
    torch.manual_seed(int(seed))
    tokenizer = transformers.ByT5Tokenizer()
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=1,
        num_decoder_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return transformers.T5ForConditionalGeneration(config), tokenizer


def _pretrained(transformers: Any, name: str) -> tuple[Any, Any]:
    place, _, revision = name.partition("@")
    folder = Path(name).expanduser()
    local = folder.is_dir() or name.startswith(("/", ".", "~"))
    if local and not (folder / "config.json").is_file():
        raise InputError(f"decoder '{name}': no {folder / 'config.json'}", _CURE)
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": local or not _online()}
    if not local and revision:
        options["revision"] = revision

    def load(kind: Any, what: str, **more: Any) -> Any:
        try:
            return kind.from_pretrained(folder if local else place, **options, **more)
        except Exception as error:  # besides OSError and ValueError, what Rust and the hub's client raise
            reason = str(error).strip().split("\n", 1)[0][:160] or type(error).__name__
            raise InputError(f"{what} '{name}' cannot be loaded: {reason}", _CURE) from None

    config = load(transformers.AutoConfig, "decoder")
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    more = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    model, found = load(kind, "decoder", **more)
    lacking = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if lacking:
        raise InputError(f"decoder '{name}' lacks weights: {', '.join(lacking[:3])}", _CURE)
    return model, load(transformers.AutoTokenizer, "the tokenizer of decoder")


def _check_fit(model: Any, tokenizer: Any, name: str) -> None:
    """transformers makes a tokenizer of its own where a folder has none: one that knows no word."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    if len(tokenizer) > vocabulary:
        raise InputError(
            f"the tokenizer of decoder '{name}' has {len(tokenizer)} tokens, its model {vocabulary}", _CURE
        )
    ids = tokenizer("a red cube", add_special_tokens=False, verbose=False)["input_ids"]
    if not ids or tokenizer.unk_token_id in ids:
        raise InputError(f"the tokenizer of decoder '{name}' has no token for 'a red cube'", _CURE)


@torch.no_grad()
def _check_causal(model: Any, name: str) -> None:
    """A model that sees what it is to say has nothing to ask of a vector."""
    width = int(model.get_input_embeddings().weight.shape[1])
    targets = torch.tensor([[2, 3, 4], [2, 5, 4]])  # the second token is not to be seen where it is to be said
    one, other = _logits(model, torch.zeros(2, 1, width), targets)[:, :2]
    if not torch.allclose(one, other, atol=1e-5, rtol=1e-4):
        raise InputError(f"'{name}' sees the tokens that it is to generate", "Give a causal decoder: T5, BART, GPT-2.")


def _online() -> bool:
    """Whether the hub may be asked: its own client would try for a minute where there is no network."""
    from huggingface_hub import constants

    split = urlsplit(constants.ENDPOINT)
    return not is_offline() and reachable(split.hostname or "", split.port or 443)
