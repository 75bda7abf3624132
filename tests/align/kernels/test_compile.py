"""Every public kernel under torch.compile: the values and gradients of eager, here and for shapes that come later.

By the backend "aot_eager", which traces values and gradients as "inductor" does and calls no C++ compiler.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from compal.align.kernels import (
    assign,
    attend,
    contrastive,
    gather,
    infonce,
    maxsim,
    memory_scores,
    pack,
    pair_scores,
    segment_queries,
    sigmoid,
    transport,
)

# torch looks at `.grad` of what enters a graph after a break, and hides the warning in a way that pytest undoes.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

PAIRS = torch.tensor([[0, 0], [3, 4], [1, 2], [0, 3], [2, 1]])
SEGMENTS = torch.tensor([[0, 0, -1, 1, 1, 2]]).expand(5, -1)


def inputs(images=4, patches=9, captions=5, words=6):
    """Image, text and a scale; one image and one caption have nothing real."""
    generator = torch.Generator().manual_seed(images)
    image = torch.randn(images, patches, 16, generator=generator)
    text = torch.randn(captions, words, 16, generator=generator)
    image_mask = torch.rand(images, patches, generator=generator) > 0.3
    text_mask = torch.arange(words) < torch.randint(1, words + 1, (captions, 1), generator=generator)
    image_mask[1], text_mask[2] = False, False
    image[~image_mask], text[~text_mask] = torch.nan, torch.nan
    return image, text, torch.tensor(2.0), image_mask, text_mask


def pooled(image, text, image_mask, text_mask):
    """Mean vectors."""
    sides = (image, image_mask), (text, text_mask)
    return [side.masked_fill(~mask[..., None], 0).mean(1) for side, mask in sides]


def labels(image, text):
    return torch.arange(len(image)) // 2, torch.arange(len(text)) - 1


def joint(image, image_mask, text, text_mask):
    x, mask = torch.cat([image, text], 1), torch.cat([image_mask, text_mask], 1)[..., None]
    return ((x.tanh() * mask).sum(1) / mask.sum(1)).square().sum(1)


def look(memory, image_mask, text, text_mask):
    seen = torch.einsum("bpd,bntd->bntp", memory, text.expand(len(memory), -1, -1, -1)).tanh()
    return (seen * image_mask[:, None, None] * text_mask[..., None]).sum((2, 3))


def masked(function, **options):
    return lambda i, t, k, im, tm: function(i, t, image_mask=im, text_mask=tm, **options)


def of_scores(loss, **options):
    def score(i, t, k, im, tm):
        one, other = pooled(i, t, im, tm)
        rows, columns = labels(i, t)
        return loss(one @ other.T, rows[:, None] == columns, scale=k, **options)

    return score


def of_vectors(loss, gathered=False, **options):
    def score(i, t, k, im, tm):
        sides = [*pooled(i, t, im, tm), *labels(i, t)]
        sides = [gather(side) for side in sides] if gathered else sides
        return contrastive(*sides, loss=loss, scale=k, **options)

    return score


def pooled_segments(i, t, k, im, tm):
    queries, known = segment_queries(t, SEGMENTS.where(tm, -1))
    return attend(i, queries, text_mask=known, image_mask=im, kappa=k, weights="minmax")


# In one graph: what looks at no value to choose its shapes.
WHOLE = {
    "maxsim": masked(maxsim, direction="both"),
    "maxsim of pairs": masked(maxsim, direction="both", pairs=PAIRS),
    "maxsim of packed": lambda i, t, k, im, tm: maxsim(i, pack(t, tm), image_mask=im, direction="both"),
    "maxsim reference": masked(maxsim, direction="both", backend="reference"),
    "attend": lambda i, t, k, im, tm: attend(i, t, image_mask=im, text_mask=tm, kappa=k),
    "attend of pairs": lambda i, t, k, im, tm: attend(
        i, t, image_mask=im, text_mask=tm, kappa=k, pairs=PAIRS, weights="topk"
    ),
    "transport": masked(transport),
    "transport of pairs": masked(transport, pairs=PAIRS),
    "infonce": of_scores(infonce, beta=0.5),
    "sigmoid": of_scores(sigmoid, bias=-1.0),
    "contrastive infonce": of_vectors("infonce", beta=0.5),
    "contrastive sigmoid": of_vectors("sigmoid", bias=-1.0, gathered=True),
}
# With breaks: chunks and matches come from lengths and similarities.
BROKEN = {
    "segments": pooled_segments,
    "assign": masked(assign, pairs=PAIRS),
    "pair_scores": masked(lambda *a, **o: pair_scores(joint, *a, **o), tokens=40),
    "pair_scores of pairs, again": masked(
        lambda *a, **o: pair_scores(joint, *a, **o), tokens=40, pairs=PAIRS, recompute=True
    ),
    "memory_scores": masked(lambda *a, **o: memory_scores(lambda i, m: i.tanh(), look, *a, **o)),
}


def outcome(function, image, text, scale, *masks):
    """Scores, and the gradients of image, text and scale."""
    sides = [side.clone().requires_grad_() for side in (image, text, scale)]
    scores = function(*sides, *masks)
    (scores * torch.linspace(0.5, 2, scores.numel()).view_as(scores)).sum().backward()
    return [scores.detach(), *(side.grad for side in sides)]


def same(function, compiled, given):
    for found, right in zip(outcome(compiled, *given), outcome(function, *given), strict=True):
        assert (found is None) == (right is None)
        if right is not None:
            assert right.isfinite().all()
            torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-7)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", WHOLE)
def test_in_one_graph(name):
    compiled = torch.compile(WHOLE[name], backend="aot_eager", fullgraph=True)
    same(WHOLE[name], compiled, inputs())
    same(WHOLE[name], compiled, inputs(images=5, patches=11, captions=7, words=8))


@pytest.mark.parametrize("name", BROKEN)
def test_with_breaks(name):
    same(BROKEN[name], torch.compile(BROKEN[name], backend="aot_eager"), inputs())


def test_gather(tmp_path):
    """With a group there is a break at the communication."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        function = of_vectors("infonce", gathered=True)
        same(function, torch.compile(function, backend="aot_eager"), inputs())
    finally:
        dist.destroy_process_group()


def test_what_does_not_fit_is_refused():
    image, text, *_ = inputs()
    with pytest.raises(Exception, match="one dtype and width"):
        torch.compile(lambda i, t: maxsim(i, t), backend="aot_eager")(image, text[..., :3])
