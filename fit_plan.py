"""What a fit would do, and what it lacks, before it does anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from .errors import InputError, MissingFeatures
from .workspace import Workspace

if TYPE_CHECKING:
    from .align.recipe import FitConfig
    from .stores.spec import FeatureSpec


@dataclass(frozen=True)
class FitPlan:
    """run         folder that it would write      level, store   of the features it reads
    head, loss  by name                         parameters     that would be trained
    steps, batch_size, accumulate               pairs          of the training table; None: it is not there
    epochs      times that a step's pairs go through the table; None without a table
    lacks       what must be made first, each with its command
    prepare     where anything lacks: the commands that a set-up gives to make all of it, in order
    bytes, free that its checkpoints would take, and that the disk has
    """

    recipe: str
    run: str
    backbone: str
    level: str
    store: str
    head: str
    loss: str
    parameters: int
    steps: int
    batch_size: int
    accumulate: int
    pairs: int | None
    epochs: float | None
    lacks: tuple[str, ...]
    prepare: tuple[str, ...] = ()
    bytes: int = 0
    free: int = 0


def plan_fit(
    recipe: str,
    backbone: str,
    data: str,
    settings: Sequence[str] = (),
    name: str = "",
    workspace: Workspace | None = None,
) -> FitPlan:
    """Load the recipe, resolve backbone and store, build the head; write nothing. Raises what `load_recipe`, `resolve`
    and `build_head` raise: a plan that is returned would start, once what it `lacks` is made."""
    import torch

    from .align import setups
    from .align.recipe import load_recipe
    from .align.record import checkpoint_bytes
    from .align.runs import run_name
    from .align.scorer import Dims, build_head
    from .api import dataset_name
    from .pipeline.stored import spec_named
    from .pipeline.trainable import open_towers
    from .stores import space

    workspace = workspace or Workspace.find()
    data, config = dataset_name(data), load_recipe(recipe, settings)
    spec = spec_named(backbone, config.level, "float16", workspace)
    rows, lacks = _inputs(config, spec, data, workspace)
    options = dict(config.head)
    head = options.pop("name")
    with torch.random.fork_rng(devices=[]):
        scorer = build_head(head, options, Dims.of(spec), partial(open_towers, spec))
    run, taken = workspace.runs / (name or run_name(recipe, config, spec, data)), checkpoint_bytes(scorer)
    if problem := space.lacking(run, taken, "its checkpoints"):
        lacks.append(f"{problem}. {space.CURE}")
    optim, batch = config.optim, min(config.data.batch_size, rows or config.data.batch_size)
    return FitPlan(
        recipe=recipe,
        run=str(run),
        backbone=spec.backbone,
        level=spec.level,
        store=str(workspace.find_store(spec)),
        head=head,
        loss=str(config.loss["name"]),
        parameters=sum(one.numel() for one in scorer.parameters() if one.requires_grad),
        steps=optim.steps,
        batch_size=config.data.batch_size,
        accumulate=optim.accumulate,
        pairs=rows,
        epochs=optim.steps * optim.accumulate * batch / rows if rows else None,
        lacks=tuple(lacks),
        prepare=setups.read(recipe).commands(backbone, data) if lacks else (),
        bytes=taken,
        free=space.free(run),
    )


def _inputs(config: FitConfig, spec: FeatureSpec, data: str, workspace: Workspace) -> tuple[int | None, list[str]]:
    """How many pairs there are to fit on, None without a table, and what is missing of features, pairs and phrases."""
    from .align.pairs import PairTable
    from .api import store_of
    from .pipeline.naming import pairs_of
    from .stores.pairs import read_pairs

    lacks, store, rows = [], None, None
    try:
        store = store_of(spec, workspace)
    except InputError as error:
        lacks.append(str(error))
    try:
        train, _ = pairs_of(data, config.data.train, config.data.validation, workspace, spec.backbone)
        rows = len(read_pairs(train))
        if store is not None:
            columns = [stage.column for stage in config.data.curriculum]
            rows = len(PairTable.read(train, store, columns, phrases=config.data.phrases != 0))
    except InputError as error:
        lacks.append(str(error))
    if config.data.phrases and (store is None or rows is None):
        what = f"no noun phrases of {data}, which data.phrases draws"
        command = f"compal extract --backbone {spec.backbone} --data {data} --level {spec.level} --phrases"
        lacks.append(str(MissingFeatures(what, f"Make them: {command}")))
    return rows, lacks
