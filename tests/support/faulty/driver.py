"""An extraction of the embedded world by an engine.

python -m faulty.driver FOLDER ENGINE PROCESSES [LIMIT [BACKBONE [BATCH_SIZE]]]
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from compal import registry
from compal.errors import CompalError
from compal.pipeline.encoder import resolve
from compal.pipeline.engines import torchrun
from compal.pipeline.job import Job, Listing
from compal.pipeline.plan import ExtractConfig, plan_units
from compal.stores.store import Store
from compal.workspace import Remote

BACKBONE = "faulty.backbone:4x8"


def drive(folder, engine="local", processes=0, limit=24, backbone=BACKBONE, batch_size=4, level="tokens"):
    """4 × `limit` items in units of 8; the reports, in the order in which they came."""
    spec = resolve(backbone, level)
    through = Remote("team", os.environ["FAULTY_THROUGH"]) if "FAULTY_THROUGH" in os.environ else None
    config = ExtractConfig(batch_size=batch_size, max_part_rows=8, engine=engine, processes=processes, through=through)
    listing = Listing("shapes", "train", limit)
    store, done, ticks = Store.create(folder, spec), [], {}

    def tick(kind, count):
        ticks[kind] = ticks.get(kind, 0) + count

    units = plan_units(listing.items(), [store], config)
    if units:
        registry.load("engines", engine).run(Job((spec,), (folder,), config, listing), units, done.append, tick)
    store.commit(part.name for unit in units for parts in unit.parts.values() for part in parts)
    return {"units": [one.unit for one in done], "encoded": sum(one.encoded for one in done), "ticks": ticks}


def main(folder, engine, processes, limit="24", backbone=BACKBONE, batch_size="4"):
    with torchrun.ranks() as leading:
        if leading:
            told = drive(Path(folder), engine, int(processes), int(limit), backbone, int(batch_size))
            print(json.dumps(told))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except CompalError as error:
        print(f"compal: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
