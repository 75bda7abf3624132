"""Write `golden_store_1b`, two stores of format 1 with what the first one lacks: bfloat16, int8, a history.

Run once, by hand: `python tests/data/make_golden_store_1b.py`. The values are formulas, repeated in
`tests/stores/test_golden.py`; never regenerate the stores to make that test pass.

bfloat16  four manifests: an append, a second one, a restoration of the first, and one of the second
int8      cast from a float32 store: dense images and ragged texts
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import make_golden_store as first

from compal.config import canonical
from compal.stores import history
from compal.stores.cast import cast
from compal.stores.store import Quarantined, Store

FOLDER = Path(__file__).with_name("golden_store_1b")
WRITTEN = {"time": 1700000000.0, "host": "golden", "user": "golden", "compal": "0.1.0"}  # no machine's


def anonymous(root):
    """Replace who, where and when by what is the same for everybody, and chain the manifests anew."""
    for path in (root / "done").iterdir():
        done = json.loads(path.read_bytes())
        done["written"] = {key: value for key, value in done["written"].items() if key == "cast_from"}
        done.pop("digest", None)
        done["digest"] = hashlib.sha256(canonical(done)).hexdigest()
        path.write_bytes(canonical(done))
    parent = ""
    for number in range(1, len(list((root / "manifests").iterdir())) + 1):
        path = root / "manifests" / f"{number}.json"
        manifest = json.loads(path.read_bytes())
        manifest |= {"parent": parent, "written": manifest["written"] | WRITTEN}
        path.write_bytes(canonical(manifest))
        parent = hashlib.sha256(path.read_bytes()).hexdigest()
    (root / "head.json").write_bytes(canonical({"manifest": number, "sha256": parent}))
    for name in (".staging", ".index"):
        shutil.rmtree(root / name, ignore_errors=True)


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    store = Store.create(FOLDER / "bfloat16", first.SPEC.with_dtype("bfloat16"))
    refused = [Quarantined("image-9", "image", "9.png", "truncated file")]
    store.write_images("i-0", first.image_rows(0, 1, 2), refused)
    store.write_texts("t-0", first.text_rows(2, 0, 1))
    store.commit(["i-0", "t-0"])
    store.write_images("i-1", first.image_rows(3))
    store.commit(["i-1"])
    history.restore(store.path, 1, "the second was a mistake")
    history.restore(store.path, 2)
    with tempfile.TemporaryDirectory() as folder:
        source = Store.create(Path(folder) / "float32", first.SPEC.with_dtype("float32"))
        source.write_images("i-0", first.image_rows(0, 1, 2, 3))
        source.write_texts("t-0", first.text_rows(2, 0, 1))
        source.commit(["i-0", "t-0"])
        cast(source.path, FOLDER / "int8", "int8")
    for root in FOLDER.iterdir():
        anonymous(root)


if __name__ == "__main__":
    main()
