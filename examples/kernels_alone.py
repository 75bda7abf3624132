"""The scoring kernels on tensors of your own: no store, no head, no file.

    python examples/kernels_alone.py

Two linear maps learn to bring patches and words of the same number together, by late interaction and a contrastive
loss with hard negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compal.align.kernels import infonce, maxsim, pack


def main(steps: int = 60, pairs: int = 32) -> tuple[float, float]:
    """The loss before and after so many steps."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(pairs, 49, 64, generator=generator)  # (I, P, D)
    words = torch.randn(pairs, 12, 48, generator=generator)  # (C, L, D')
    lengths = torch.randint(4, 13, (pairs,), generator=generator)
    mask = torch.arange(12) < lengths[:, None]  # (C, L) bool: True on real tokens, which come first
    image, text = nn.Linear(64, 32, bias=False), nn.Linear(48, 32, bias=False)
    for layer in (image, text):
        nn.init.normal_(layer.weight, std=0.1, generator=generator)
    optimizer = torch.optim.AdamW([*image.parameters(), *text.parameters()], lr=3e-3)

    def loss() -> Tensor:
        one, two = (nn.functional.normalize(value, dim=-1) for value in (image(patches), text(words)))
        scores = maxsim(one, two, text_mask=mask, direction="both")  # (I, C) float32
        return infonce(20 * scores, torch.eye(pairs, dtype=torch.bool))

    first = loss().item()
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(loss())
        optimizer.step()

    with torch.no_grad():  # captions end to end, without padding: the same scores
        one, two = (nn.functional.normalize(value, dim=-1) for value in (image(patches), text(words)))
        padded = maxsim(one, two, text_mask=mask)
        assert torch.allclose(padded, maxsim(one, pack(two, mask)), atol=1e-6)
        mined = maxsim(one, two, text_mask=mask, pairs=torch.tensor([[0, 1], [3, 2]]))  # (2,): only these pairs
        assert torch.allclose(mined, padded[[0, 3], [1, 2]], atol=1e-6)
    return first, loss().item()


if __name__ == "__main__":
    print("loss {:.3f} → {:.3f}".format(*main()))
