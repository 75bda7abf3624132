"""Scoring kernels: every image of a batch against every caption, token by token, without the big tensor.

Importable alone: they know torch and this package's errors, nothing else of compal.

    maxsim                            late interaction: each token takes its best partner (FILIP, ColBERT)
    attend, segment_queries           text-conditioned pooling against the token (SCAN, SPARC, XAC)
    transport                         optimal transport of all patches to all tokens, softened (Sinkhorn)
    assign                            one patch for each token, exactly, for given pairs
    infonce, sigmoid                  contrastive losses of a score block, several positives and hard negatives
    contrastive, gather               the same from embeddings, tile by tile; features of all processes
    pair_scores, memory_scores        joint transformers over chosen or all pairs, with recompute
    Packed, pack, unpack              tokens of captions end to end, without padding
    reference_*                       the specification of each, slow and plain
"""

from ._tokens import Packed, pack, unpack
from .assign import assign
from .attend import attend, reference_attend, segment_queries
from .contrastive import (
    contrastive,
    gather,
    infonce,
    reference_contrastive,
    reference_infonce,
    reference_sigmoid,
    sigmoid,
)
from .maxsim import maxsim, reference_maxsim
from .pairs import memory_scores, pair_scores
from .transport import reference_transport, transport

__all__ = [
    "Packed",
    "assign",
    "attend",
    "contrastive",
    "gather",
    "infonce",
    "maxsim",
    "memory_scores",
    "pack",
    "pair_scores",
    "reference_attend",
    "reference_contrastive",
    "reference_infonce",
    "reference_maxsim",
    "reference_sigmoid",
    "reference_transport",
    "segment_queries",
    "sigmoid",
    "transport",
    "unpack",
]
