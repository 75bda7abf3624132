"""The ten sets in their official layouts, six classes of each, two pictures a class."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from scipy.io import savemat

from . import paint

KINDS = ("apple_pie", "beignets", "ceviche", "donuts", "edamame", "falafel")


def lines(path: Path, found: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(found) + "\n")


def cifar(folder: Path, records: str, meta: str, labels: int) -> None:
    folder.mkdir(parents=True)
    written = b""
    for number in range(12):
        pixels = hashlib.shake_256(f"{folder.name}{number}".encode()).digest(3072)
        written += bytes([0] * (labels - 1) + [number % 6]) + pixels
    (folder / records).write_bytes(written)
    lines(folder / meta, list(KINDS))


def food101(root: Path) -> None:
    names = [f"{kind}/{1000 + place}{number}" for place, kind in enumerate(KINDS) for number in range(2)]
    lines(root / "meta" / "test.txt", names)
    for name in names:
        paint(root / "images" / f"{name}.jpg")


def pets(root: Path) -> None:
    breeds = ("Abyssinian", "american_bulldog", "Bengal", "boxer", "Persian", "pug")
    names = [(f"{kind}_{number + 1}", place + 1) for place, kind in enumerate(breeds) for number in range(2)]
    lines(root / "annotations" / "test.txt", [f"{name} {label} 1 1" for name, label in names])
    lines(root / "classnames.txt", [kind.replace("_", " ").title() for kind in breeds])
    for name, _ in names:
        paint(root / "images" / f"{name}.jpg")


def flowers(root: Path) -> None:
    root.mkdir(parents=True)
    savemat(root / "imagelabels.mat", {"labels": np.array([[1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 6]], np.uint8)})
    savemat(root / "setid.mat", {"trnid": np.array([[13]]), "tstid": np.arange(1, 13, dtype=np.uint16)[None]})
    lines(root / "classnames.txt", [f"flower {number}" for number in range(6)])
    for number in range(1, 14):
        paint(root / "jpg" / f"image_{number:05d}.jpg")


def sun397(root: Path) -> None:
    places = ("/a/abbey", "/a/apartment_building/outdoor", "/b/bar", "/c/cave", "/d/dam", "/e/elevator/interior")
    names = [f"{place}/sun_{place[3:].replace('/', '')}{number}.jpg" for place in places for number in range(2)]
    lines(root / "Testing_01.txt", names)
    for name in names:
        paint(root / "SUN397" / name[1:])


def cars(root: Path) -> None:
    (root / "devkit").mkdir(parents=True)
    names = np.array([f"Maker Model {number} Sedan 2012" for number in range(6)], object)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    fields = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
    marks = np.array([(1, number % 6 + 1, f"{number + 1:05d}.jpg") for number in range(12)], fields)
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": marks})
    for number in range(12):
        paint(root / "cars_test" / f"{number + 1:05d}.jpg")


def dtd(root: Path) -> None:
    kinds = ("banded", "blotchy", "braided", "bubbly", "bumpy", "polka-dotted")
    names = [f"{kind}/{kind}_000{number}.jpg" for kind in kinds for number in range(2)]
    lines(root / "labels" / "test1.txt", names)
    for name in names:
        paint(root / "images" / name)


def caltech101(root: Path) -> None:
    for kind in ("accordion", "BACKGROUND_Google", "Faces", "Faces_easy", "crab", "yin_yang"):
        for number in range(2):
            paint(root / "test" / kind / f"{kind}_{number:04d}.jpg")
    lines(root / "classnames.txt", ["accordion", "background", "crab", "off-center face", "centered face", "yin yang"])


def fgvc_aircraft(root: Path) -> None:
    kinds = ("707-320", "727-200", "A300B4", "DH-82", "F-16A/B", "Spitfire")
    names = [(f"00345{place}{number}", kind) for place, kind in enumerate(kinds) for number in range(2)]
    lines(root / "data" / "images_variant_test.txt", [f"{name} {kind}" for name, kind in names])
    for name, _ in names:
        paint(root / "data" / "images" / f"{name}.jpg")


def write(root: Path) -> None:
    cifar(root / "cifar10" / "cifar-10-batches-bin", "test_batch.bin", "batches.meta.txt", 1)
    cifar(root / "cifar100" / "cifar-100-binary", "test.bin", "fine_label_names.txt", 2)
    for make in (food101, pets, flowers, sun397, cars, dtd, caltech101, fgvc_aircraft):
        make(root / make.__name__)
