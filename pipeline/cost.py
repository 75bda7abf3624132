"""What an extraction costs before it runs: hours, price, bytes, parts and requests, from stated assumptions.

    python -m compal.pipeline.cost      the table of docs/guides/extraction.md

Bytes, parts and requests follow from the plan. The rate of a device is the least of three: what it computes (peak ×
utilisation over the FLOPs of the towers), what its share of the processor decodes, what it writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..stores.spec import FeatureSpec
from .plan import KINDS, ExtractConfig, Kind, part_rows, sample_bytes

# Of the object store for each part, beside its files: its claim, the look for its done file, that, the claim's end.
REQUESTS_OF_A_PART = 4


@dataclass(frozen=True)
class Machine:
    """A device, its share of the machine around it and their price; every figure is an assumption.

    name         for the table
    flops        peak of dense bfloat16, a second
    utilisation  share of that which the towers reach
    decoding     images a second that the device's share of the processor decodes and resizes
    writing      bytes a second that it writes to the store
    price        of an hour of the device, its share of the machine included, $
    requests     price of 1,000 write requests, $
    """

    name: str
    flops: float
    utilisation: float
    decoding: float
    writing: float
    price: float
    requests: float = 0.0


@dataclass(frozen=True)
class Towers:
    """FLOPs of one image and of one caption, two for a multiplication with its addition."""

    image: float
    text: float

    def of(self, kind: Kind) -> float:
        """Of one item."""
        return self.image if kind == "image" else self.text


@dataclass(frozen=True)
class Estimate:
    """What an extraction takes.

    hours     wall clock
    price     of devices and requests, $
    bytes     of the store, ragged rows estimated as the plan does
    parts     of it
    requests  that write, if the store is on object storage
    limit     what most of the time goes into: compute, decode or write
    """

    hours: float
    price: float
    bytes: int
    parts: int
    requests: int
    limit: str


def estimate(counts: Mapping[Kind, int], spec: FeatureSpec, towers: Towers, machine: Machine, devices: int) -> Estimate:
    """The cost of extracting so many images and captions at one level. Starting up is not in it."""
    config = ExtractConfig()
    sizes = {kind: sample_bytes(kind, (), spec) for kind in KINDS}
    rows = {kind: part_rows(kind, (), spec, config) for kind in KINDS}
    parts = {kind: -(-counts.get(kind, 0) // rows[kind]) for kind in KINDS}
    seconds = {"compute": 0.0, "decode": 0.0, "write": 0.0}
    total = 0.0
    for kind in KINDS:
        each = {
            "compute": towers.of(kind) / (machine.flops * machine.utilisation),
            "decode": 1 / machine.decoding if kind == "image" else 0.0,
            "write": sizes[kind] / machine.writing,
        }
        limit = max(each, key=lambda name: each[name])
        # A part is one device's: the busiest has ceil(parts / devices) of them.
        longest = min(counts.get(kind, 0), -(-parts[kind] // devices) * rows[kind]) * each[limit]
        seconds[limit] += longest
        total += longest
    requests = sum(parts[kind] * (files_of_a_part(kind, spec) + REQUESTS_OF_A_PART) for kind in KINDS)
    return Estimate(
        hours=total / 3600,
        price=total / 3600 * devices * machine.price + requests / 1000 * machine.requests,
        bytes=sum(counts.get(kind, 0) * sizes[kind] for kind in KINDS),
        parts=sum(parts.values()),
        requests=requests,
        limit=max(seconds, key=lambda name: seconds[name]),
    )


def files_of_a_part(kind: Kind, spec: FeatureSpec) -> int:
    """How many files a part consists of, without its done file: a table, and an Arrow file or Zarr arrays."""
    if kind == "text" or spec.ragged_images:
        return 2
    arrays = int(spec.keeps_tokens) + int(spec.pooled_dim > 0)
    return 1 + 1 + 2 * arrays  # table, group, and of each array its description and its shard


# --- the table of the guide ------------------------------------------------------------------------------

# FLOPs are counted on the architectures (`tests/pipeline/test_cost.py` counts again).
BACKBONES = {
    "clip": ("ViT-B-32-quickgelu", Towers(8.818e9, 5.960e9)),
    "siglip2": ("ViT-B-16-SigLIP2-256", Towers(46.82e9, 11.02e9)),
    "pe-l14": ("PE-Core-L-14-336", Towers(384.4e9, 19.43e9)),
}
H100 = Machine("H100 of a node with 8, 16 cores a GPU, NVMe", 989e12, 0.30, 16 * 250, 1.0e9, 3.00)
A100 = Machine("spot A100, 12 cores, object storage", 312e12, 0.30, 12 * 250, 0.3e9, 1.20, 0.005)
SCENES: Sequence[tuple[str, Mapping[Kind, int], Machine, int]] = (
    ("COCO train2017 and val2017", {"image": 123_287, "text": 616_767}, H100, 8),
    ("CC12M", {"image": 12_423_374, "text": 12_423_374}, A100, 32),
)


def table() -> str:
    """The cost of two data sets on two clusters at two levels, as Markdown."""
    from .encoder import resolve

    lines = [
        "| data, devices | backbone | level | minutes | price | size | parts | requests | limit |",
        "|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for data, counts, machine, devices in SCENES:
        for alias, (model, towers) in BACKBONES.items():
            for level in ("pooled", "tokens"):
                spec = resolve(f"open_clip:{model}", level)
                cost = estimate(counts, spec, towers, machine, devices)
                cells = [
                    f"{data}, {devices} × {machine.name.split(' of ')[0].split(',')[0]}", alias, level,
                    f"{60 * cost.hours:.1f}", f"${cost.price:,.2f}", _size(cost.bytes), f"{cost.parts:,}",
                    f"{cost.requests:,}", cost.limit,
                ]  # fmt: skip
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def assumptions() -> str:
    """What the table assumes, as Markdown."""
    lines = []
    for machine in (H100, A100):
        extra = f", ${machine.requests:g} per 1,000 write requests" if machine.requests else ""
        lines.append(
            f"- {machine.name}: {machine.flops / 1e12:,.0f} TFLOP/s dense bfloat16 at {machine.utilisation:.0%} "
            f"utilisation, {machine.decoding:,.0f} images/s decoded, {machine.writing / 1e9:g} GB/s written, "
            f"${machine.price:.2f} an hour{extra}."
        )
    for alias, (model, towers) in BACKBONES.items():
        lines.append(
            f"- {alias} ({model}): {towers.image / 1e9:,.1f} GFLOP an image, {towers.text / 1e9:,.1f} a caption."
        )
    return "\n".join(lines) + "\n"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


if __name__ == "__main__":
    print(table())
    print(assumptions(), end="")
