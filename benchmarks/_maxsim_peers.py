"""MaxSim of other packages, called as their own documentation says, those of them that are installed and run here.

    pip install --target peers --no-deps pylate sentence-transformers colpali-engine maxsim-cpu maxsim-fast \
        late-interaction-kernels flash-maxsim
    PYTHONPATH=peers python benchmarks/maxsim.py

They know one direction, token to patch; both directions are two calls, as a user would do. A package that gives other
scores than ours is not timed and said to be wrong.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]
# float32 products differ by some 1e-6; kernels that compute in half precision by 1e-3.
AGREES = 5e-3


def _pylate() -> Score:
    from pylate.scores import colbert_scores

    return lambda queries, documents: colbert_scores(queries, documents)  # type: ignore[no-any-return]


def _colpali() -> Score:
    from colpali_engine.utils.processing_utils import BaseVisualRetrieverProcessor

    def score(queries: Tensor, documents: Tensor) -> Tensor:
        device = str(queries.device)
        found = BaseVisualRetrieverProcessor.score_multi_vector(queries, documents, device=device)
        return found.to(device)  # type: ignore[no-any-return]

    return score


def _numpy(module: str) -> Score:
    """maxsim-cpu and its fork: one query against contiguous documents."""
    call = __import__(module).maxsim_scores

    def score(queries: Tensor, documents: Tensor) -> Tensor:
        held = documents.numpy()
        return torch.stack([torch.from_numpy(call(query.numpy(), held)) for query in queries])

    return score


def _late_interaction_kernels() -> Score:
    from late_interaction_kernels import maxsim

    return lambda queries, documents: maxsim(queries, documents)  # type: ignore[no-any-return]


def _flash_maxsim() -> Score:
    import flash_maxsim

    return lambda queries, documents: flash_maxsim.flash_maxsim_batched_train(queries, documents)  # type: ignore[no-any-return]


def _compiled() -> Score:
    def plain(queries: Tensor, documents: Tensor) -> Tensor:
        return torch.einsum("qld,npd->qnlp", queries, documents).amax(-1).float().sum(-1)

    return torch.compile(plain)


# Name → how to get it, on which devices it runs, and whether autograd goes through it.
PEERS: dict[str, tuple[Callable[[], Score], tuple[str, ...], bool]] = {
    "torch.compile": (_compiled, ("cpu", "cuda"), True),
    "pylate": (_pylate, ("cpu", "cuda"), True),
    "colpali-engine": (_colpali, ("cpu", "cuda"), False),
    "maxsim-cpu": (lambda: _numpy("maxsim_cpu"), ("cpu",), False),
    "maxsim-fast": (lambda: _numpy("maxsim_fast"), ("cpu",), False),
    "late-interaction-kernels": (_late_interaction_kernels, ("cuda",), True),
    "flash-maxsim": (_flash_maxsim, ("cuda",), True),
}

# Wrong at widths beyond 128, and may take the process with it (its own warning: a matrix product is missing).
UNSAFE = {"maxsim-cpu": "maxsim_cpu"}
NOT_INSTALLED, WRONG = 5, 6


def peers(
    device: str, direction: str, trained: bool, ours: Score, image: Tensor, text: Tensor
) -> dict[str, Score | str]:
    """Name → score(image, text) (I, C), or why there is none: "not installed", "dies", "wrong" with its largest error.
    Those that do not run on `device`, or that cannot be trained where that is asked for, are left out."""
    found: dict[str, Score | str] = {}
    wanted = ours(image, text).detach()
    for name, (get, devices, trains) in PEERS.items():
        if device not in devices or (trained and not trains):
            continue
        if name in UNSAFE and (ended := _probe(UNSAFE[name], image.shape, text.shape)):
            found[name] = ended
            continue
        try:
            score = _mean(get(), direction)
        except ImportError:
            found[name] = "not installed"
            continue
        gap = float((score(image, text).detach().float() - wanted).abs().max() / wanted.abs().max())
        found[name] = score if gap < AGREES else f"wrong (error {gap:.0e})"
    return found


def _probe(module: str, images: Sequence[int], captions: Sequence[int]) -> str:
    """Score random tokens of such shapes in a process of its own; what was wrong with that, if anything."""
    lines = (
        f"import importlib.util, sys, numpy as np; importlib.util.find_spec({module!r}) or sys.exit({NOT_INSTALLED})",
        f"from {module} import maxsim_scores; rng = np.random.default_rng(0)",
        f"images = rng.standard_normal({tuple(images)}, dtype=np.float32)",
        f"captions = rng.standard_normal({tuple(captions)}, dtype=np.float32)",
        "found = np.stack([maxsim_scores(caption, images) for caption in captions])",
        "wanted = np.stack([(images @ caption.T).max(1).sum(1) for caption in captions])",
        f"sys.exit(0 if np.allclose(found, wanted, rtol=1e-3) else {WRONG})",
    )
    code = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True).returncode
    if code < 0:
        return f"dies ({signal.Signals(-code).name})"
    return {0: "", NOT_INSTALLED: "not installed", WRONG: "wrong"}.get(code, "fails")


def _mean(call: Score, direction: str) -> Score:
    """From sums over query tokens to the mean, (I, C)."""

    def score(image: Tensor, text: Tensor) -> Tensor:
        parts: list[Any] = []
        if direction != "i2t":
            parts.append(call(text, image).T.float() / text.shape[1])
        if direction != "t2i":
            parts.append(call(image, text).float() / image.shape[1])
        return parts[0] if len(parts) == 1 else (parts[0] + parts[1]) / 2  # type: ignore[no-any-return]

    return score
