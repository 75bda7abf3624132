"""Small roots of every dataset of files, in the layouts that are published. A new dataset adds a maker."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

from PIL import Image

COCO = Path(__file__).parent.parent / "data" / "coco"
PHOTOGRAPHS = sorted((COCO / "val2017").glob("*.jpg"))
FEW = 4


def picture(number):
    """The bytes of a small image of its own."""
    data = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 99)).save(data, "png")
    return data.getvalue()


def write_image(path, number):
    """An image file, its folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(number))
    return path


def write_tar(path, members):
    """An uncompressed tar of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def folder(root):
    for number in range(FEW):
        write_image(root / f"{number}.png", number)
        (root / f"{number}.txt").write_text(f"caption {number}\nanother {number}\n")
    return root


def table(root):
    folder(root)
    rows = [f'{number}.png,caption {number},"[""not {number}"", ""nor {number}""]"' for number in range(FEW)]
    (root / "captions.csv").write_text("\n".join(["image,caption,negatives", *rows]))
    return root / "captions.csv"


def coco(root):
    return COCO


def karpathy(names, splits=("train", "restval", "val", "test"), folder="val2014"):
    """Karpathy's JSON of these files, the splits in turn."""
    images = [
        {
            "filename": name,
            **({"filepath": folder} if folder else {}),
            "split": splits[number % len(splits)],
            "sentids": [2 * number, 2 * number + 1],
            "sentences": [
                {"raw": f"sentence {2 * number + k}.", "tokens": ["sentence"], "sentid": 2 * number + k} for k in (0, 1)
            ],
        }
        for number, name in enumerate(names)
    ]
    return {"images": images, "dataset": "made"}


def coco_karpathy(root):
    names = [f"COCO_val2014_{number:012d}.jpg" for number in range(4 * FEW)]
    for number, name in enumerate(names):
        write_image(root / "val2014" / name, number)
    (root / "dataset_coco.json").write_text(json.dumps(karpathy(names)))
    return root


def flickr30k(root):
    names = [f"{1000 + number}.jpg" for number in range(3 * FEW)]
    for number, name in enumerate(names):
        write_image(root / "flickr30k-images" / name, number)
    data = karpathy(names, ("train", "val", "test"), "")
    (root / "dataset_flickr30k.json").write_text(json.dumps(data))
    return root


def degla(root):
    rows = []
    for number in range(FEW):
        write_image(root / "train2014" / f"COCO_train2014_{number:012d}.jpg", number)
        rows += [
            {
                "image_id": number,
                "original": f"caption {number}.{k}",
                "enhanced": [f"not {number}.{k} {n}" for n in "abcd"],
            }
            for k in (0, 1)
        ]
    (root / "DeGLA.json").write_text(json.dumps(rows))
    return root


def trohn_text(root):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for number in range(FEW):
        write_image(root / "train2017" / f"{number:012d}.jpg", number)
        rows += [
            {"image_id": f"{number:012d}.jpg", "caption": f"caption {number}", "negative_caption": f"not {number} {k}"}
            for k in "ab"
        ]
    (root / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), root / "data" / "train-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:2]), root / "data" / "validation-00000-of-00001.parquet")
    return root


def _write_hub_parquet(path, columns):
    """Columns as the hub stores them: an image is a struct of bytes and path, told of in the metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    features = {
        name: {"_type": "Image"} if isinstance(values[0], dict) else {"dtype": "string", "_type": "Value"}
        for name, values in columns.items()
        if not isinstance(values[0], list)
    }
    features |= {
        name: {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"}
        for name, values in columns.items()
        if isinstance(values[0], list)
    }
    table = pa.table(columns)
    told = {"huggingface": json.dumps({"info": {"features": {name: features[name] for name in columns}}})}
    pq.write_table(table.replace_schema_metadata(told), path)
    return path


def embedded(number):
    """An image as a row of the hub holds it."""
    return {"bytes": picture(number), "path": f"{number}.png"}


def trohn_img(root):
    for number in range(FEW):
        write_image(root / "train2017" / f"{number:012d}.jpg", number)
    _write_hub_parquet(
        root / "data" / "train-00000-of-00001.parquet",
        {
            "image_id": [f"{number:012d}.jpg" for number in range(FEW)],
            "caption": [f"caption {number}" for number in range(FEW)],
            "negative_caption": [f"not {number}" for number in range(FEW)],
            "negative_image": [embedded(100 + number) for number in range(FEW)],
        },
    )
    return root


def huggingface(root):
    numbers = range(FEW)
    columns = {"image": [embedded(n) for n in numbers], "captions": [[f"caption {n}", f"another {n}"] for n in numbers]}
    _write_hub_parquet(root / "data" / "train-00000-of-00001.parquet", columns)
    return root


def webdataset(root):
    for shard in range(2):
        members = []
        for number in range(shard * FEW, (shard + 1) * FEW):
            members += [(f"{number:05d}.png", picture(number)), (f"{number:05d}.txt", f"caption {number}".encode())]
            members.append(
                (f"{number:05d}.json", json.dumps({"long": [f"long {number}", f"longer {number}"]}).encode())
            )
        write_tar(root / f"{shard:05d}.tar", members)
    return root


def dreamlip(root):
    sets = ("raw_caption", "shortIB_captions", "longIB_captions", "shortSV_captions", "longSV_captions")
    with open(root / "captions.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Image Path", *sets])
        for number in range(FEW):
            write_image(root / "images" / f"{number}.png", number)
            rows.writerow([f"images/{number}.png", *(f"{name} {number}" for name in sets)])
    return root


def clic(root):
    return Path(f"folder:{folder(root)}")


MAKERS = {
    "clic": clic,
    "coco": coco,
    "coco-karpathy": coco_karpathy,
    "degla": degla,
    "dreamlip": dreamlip,
    "flickr30k": flickr30k,
    "folder": folder,
    "huggingface": huggingface,
    "scenes3d": lambda root: None,
    "shapes": lambda root: None,
    "table": table,
    "trohn-img": trohn_img,
    "trohn-text": trohn_text,
    "webdataset": webdataset,
}
