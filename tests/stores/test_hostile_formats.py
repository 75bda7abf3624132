"""Forged exports: an import refuses claims, objects, links and names with the reason, before memory is taken."""

import io
import json
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from hostile import Canary, little_memory

from compal import registry
from compal.config import canonical
from compal.errors import CompalError, InputError
from compal.stores.store import Store

GIGABYTES = 10 * 2**30
MAPPING = {"backbone": "theirs", "images.keys": "ids", "images.tokens": "feats", "images.pooled": "cls"}


@pytest.fixture
def canary(tmp_path):
    """An object that, unpickled, makes a file; the test fails if it is there in the end."""
    yield Canary(tmp_path / "executed")
    assert not (tmp_path / "executed").exists()


def module(name):
    return registry.load("formats", name)


@pytest.fixture
def refused(tmp_path):
    """`refused(format, path, match, mapping=None)`: the import says why not, and nothing is committed."""

    def check(name, path, match, mapping=None):
        module(name)
        with little_memory(), pytest.raises(InputError, match=match) as found:
            module(name).load(path, tmp_path / "stores", mapping)
        assert "\n" not in str(found.value)
        assert not list(tmp_path.glob("stores/*/manifests/*"))
        assert "memory" not in str(found.value)  # refused by its claim, not by the machine

    return check


@pytest.fixture
def export(whole_stores, tmp_path):
    """`export(format)`: a fresh export of a whole store."""

    def make(name):
        path = tmp_path / f"export-{name}"
        module(name).export(Store.open(whole_stores["tokens"][0]), path)
        return path

    return make


# --- HDF5 ------------------------------------------------------------------------------------------------


@pytest.fixture
def hdf5(tmp_path):
    """`hdf5(write)`: a file with ids and cls, and what `write(file)` adds."""
    import h5py

    def make(write, name="theirs.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            file["ids"] = np.array([b"a", b"b", b"c"])
            file["cls"] = np.zeros((3, 4), np.float32)
            write(h5py, file)
        return tmp_path / name

    return make


def never_written(h5py, file):
    file.create_dataset("feats", (3, 50_000, 20_000), "f4")


def zeros_compressed(h5py, file):
    file.create_dataset("feats", (3, 8192, 32_000), "f4", chunks=(1, 64, 8000), compression="gzip")[0, :64, :8000] = 0


def one_large_chunk(h5py, file):
    shape = {"maxshape": (None, None, None), "chunks": (1, 30_000, 30_000)}
    file.create_dataset("feats", (3, 2, 2), "f4", compression="gzip", **shape)


def link_outside(h5py, file):
    file["feats"] = h5py.ExternalLink("other.h5", "/feats")


def soft_link(h5py, file):
    file["feats"] = h5py.SoftLink("/cls")


def storage_outside(h5py, file):
    file.create_dataset("feats", (3, 2, 2), "f4", external=[("/etc/passwd", 0, 48)])


def virtual(h5py, file):
    layout = h5py.VirtualLayout((3, 2, 2), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "feats", (3, 2, 2))
    file.create_virtual_dataset("feats", layout)


def references(h5py, file):
    file.create_dataset("feats", (3,), h5py.ref_dtype)[0] = file["cls"].ref


def lists(h5py, file):
    file.create_dataset("feats", (3,), h5py.vlen_dtype(np.float32))


def compounds(h5py, file):
    file.create_dataset("feats", (3, 2), np.dtype([("a", "f4"), ("b", "f4")]))


def a_group(h5py, file):
    file.create_group("feats")


def a_type(h5py, file):
    file["feats"] = np.dtype("f4")


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (never_written, r"claims 12,000,000,000 bytes, 0 are stored"),
        (zeros_compressed, r"claims 3,145,728,000 bytes"),
        (one_large_chunk, r"chunk of feats claims|feats claims"),
        (link_outside, "feats is a link"),
        (soft_link, "feats is a link"),
        (storage_outside, "lies in other files"),
        (virtual, "lies in other files"),
        (references, "no plain number"),
        (lists, "no plain number"),
        (compounds, "no plain number"),
        (a_group, "not an array"),
        (a_type, "not an array"),
    ],
)
def test_hdf5(hdf5, refused, write, match):
    refused("hdf5", hdf5(write), match, MAPPING)


def test_hdf5_with_one_text_that_stands_for_a_million(hdf5, refused, tmp_path):
    """Every row refers to the same 200 KB of the heap."""
    import h5py

    long = "x" * 200_000

    def write(h5py, file):
        file.create_dataset("words", (50_000,), h5py.string_dtype())[0] = long
        file.create_dataset("feats", data=np.zeros((3, 2, 2), np.float32))

    path = hdf5(write)
    with h5py.File(path) as file:
        place, size = file["words"].id.get_offset(), 16
    with open(path, "r+b") as file:
        file.seek(place)
        reference = file.read(size)
        file.seek(place)
        file.write(reference * 50_000)
    refused("hdf5", path, r"words claims", MAPPING | {"images.sources": "words"})


def test_hdf5_that_is_none(tmp_path, refused):
    for content in (b"", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(3000), b"x" * 5000):
        (tmp_path / "x.h5").write_bytes(content)
        refused("hdf5", tmp_path / "x.h5", "cannot be read")


# --- npz -------------------------------------------------------------------------------------------------


def npy(shape, descr="'<f2'", order=False, body=b"", version=1, padding=0):
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}{' ' * padding}\n".encode()
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + body


@pytest.fixture
def npz(tmp_path):
    """`npz(feats=bytes)`: an archive with ids and cls, and a member as given."""

    def make(feats, method=zipfile.ZIP_STORED, name="feats.npy"):
        arrays = {"ids.npy": np.array(list("abc")), "cls.npy": np.zeros((3, 4), np.float16)}
        with zipfile.ZipFile(tmp_path / "theirs.npz", "w", method) as archive:
            for member, values in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, values)
                archive.writestr(member, buffer.getvalue())
            archive.writestr(name, feats)
        return tmp_path / "theirs.npz"

    return make


@pytest.mark.parametrize(
    ("feats", "match"),
    [
        (npy((3, 50_000, 40_000)), r"claims 12,000,000,000 bytes"),
        (npy((10**30, 3, 8)), r"claims"),
        (npy((-3, 3, 8)), "shape"),
        (npy((3, 2, 2), "'|O'"), "never unpickled"),
        (npy((3, 2, 2), "[('a', '<f2')]"), "never unpickled"),
        (npy((3, 2, 2), "('<f2', (1000000, 1000))"), "never unpickled|cannot be read"),
        (npy((3, 2, 2), "'<U0'"), "never unpickled|cannot be read"),
        (npy((3, 2, 2), "__import__('os')"), "cannot be read"),
        (npy((3, 2, 2), order=True, body=bytes(24)), "Fortran"),
        (npy((3, 2, 2), body=bytes(23)), r"claims 24 bytes|ends early"),
        (npy((3, 2, 2), body=bytes(25)), "longer than its shape"),
        (npy((3, 2, 2), padding=20_000), "cannot be read"),
        (npy((3, 2, 2), version=2, padding=10**6), "cannot be read"),
        (npy((3, 2, 2), version=3), "version"),
        (b"not an array", "cannot be read"),
        (b"", "cannot be read"),
    ],
    ids=lambda value: repr(value[10:70]) if isinstance(value, bytes) else value,
)
def test_npz(npz, refused, feats, match):
    refused("npz", npz(feats), match, MAPPING)


def test_npz_of_zeros_that_compress_to_nothing(npz, refused):
    refused("npz", npz(npy((3, 4000, 4000), body=bytes(96_000_000)), zipfile.ZIP_DEFLATED), "claims", MAPPING)


def test_npz_with_pickles(npz, refused, canary, tmp_path):
    raw = npy((1,), "'|O'", body=pickle.dumps(canary))
    refused("npz", npz(raw), "never unpickled", MAPPING)
    refused("npz", npz(pickle.dumps(canary)), "cannot be read", MAPPING)
    (tmp_path / "p.npz").write_bytes(pickle.dumps(canary))
    refused("npz", tmp_path / "p.npz", "cannot be read", MAPPING)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_npz_with_two_members_of_a_name(npz, refused):
    refused("npz", npz(npy((3, 2, 2), body=bytes(24)), name="cls.npy"), "two arrays of one name", MAPPING)


# --- safetensors -----------------------------------------------------------------------------------------


def tensors(path, header, body=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + body)
    return path


TENSOR = {"dtype": "F16", "shape": [3, 2, 2], "data_offsets": [0, 24]}


@pytest.mark.parametrize(
    ("header", "length", "match"),
    [
        (b"{}", 2**63, "header claims"),
        (b"{}", GIGABYTES, "header claims"),
        (b"{", None, "cannot be read"),
        (b"[" * 100_000, None, "cannot be read"),
        (b"[]", None, "not an object"),
        (b"\xff", None, "cannot be read"),
        ({"__metadata__": {"spec": 5}}, None, "not texts"),
        ({"__metadata__": []}, None, "not texts"),
        ({"feats": TENSOR | {"shape": [3, 10**5, 10**5]}}, None, "lies at"),
        ({"feats": TENSOR | {"shape": [2**32, 2**32]}}, None, "lies at"),
        ({"feats": TENSOR | {"data_offsets": [0, GIGABYTES], "shape": [GIGABYTES // 2]}}, None, "lies at"),
        ({"feats": TENSOR | {"data_offsets": [24, 0]}}, None, "lies at"),
        ({"feats": TENSOR | {"data_offsets": [-24, 0]}}, None, "no shape or place"),
        ({"feats": TENSOR | {"data_offsets": [0]}}, None, "no shape or place"),
        ({"feats": TENSOR | {"shape": [3.0, 2, 2]}}, None, "no shape or place"),
        ({"feats": TENSOR | {"shape": None}}, None, "no shape or place"),
        ({"feats": TENSOR | {"dtype": "O"}}, None, "no dtype"),
        ({"feats": TENSOR | {"dtype": ["F16"]}}, None, "no dtype"),
        ({"feats": 5}, None, "no dtype"),
    ],
)
def test_safetensors(tmp_path, refused, header, length, match):
    refused("safetensors", tensors(tmp_path / "x.safetensors", header, bytes(24), length), match, MAPPING)


def test_safetensors_of_texts_that_are_cut_wrongly(export, refused):
    path = export("safetensors")
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    first, last = header["images.keys.ends"]["data_offsets"]
    for ends in ([9, 8, 7, 6], [-1, 5, 9, 28], [1, 2, 3, 2**62]):
        body = raw[8 + length :]
        path.write_bytes(raw[: 8 + length] + body[:first] + np.array(ends, "<i8").tobytes() + body[last:])
        refused("safetensors", path, "does not cut images.keys into texts")


# --- WebDataset ------------------------------------------------------------------------------------------


def retar(path, change):
    """Write the shard of images anew: `change(members)` of a list of (TarInfo, bytes)."""
    shard = path / "images-000000.tar"
    with tarfile.open(shard) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    members = change(members)
    with tarfile.open(shard, "w") as tar:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))


def named(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("member", "content"),
    [
        (named("image-9.pkl"), b"cos\nsystem\n(S'true'\ntR."),
        (named("image-9.pyd"), b"cos\nsystem\n(S'true'\ntR."),
        (named("image-9.json", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (named("image-9.json", tarfile.LNKTYPE, "image-1.json"), b""),
        (named("image-9.json", tarfile.CHRTYPE), b""),
        (named("folder", tarfile.DIRTYPE), b""),
    ],
)
def test_webdataset_members_that_no_export_has(export, refused, member, content):
    path = export("webdataset")
    retar(path, lambda members: [*members, (member, content)])
    refused("webdataset", path, "is not one of an export")


def replaced(suffix, content):
    return lambda members: [(info, content(raw) if info.name == f"image-1{suffix}" else raw) for info, raw in members]


@pytest.mark.parametrize(
    ("suffix", "content", "match"),
    [
        (".tokens.npy", lambda raw: npy((3, 10**5, 10**5)), "claims"),
        (".tokens.npy", lambda raw: npy((3, 8), "'|O'", body=pickle.dumps("x" * 96)), "never unpickled"),
        (".tokens.npy", lambda raw: raw[:-1], "bytes of its shape"),
        (".tokens.npy", lambda raw: raw + b"x", "bytes of its shape"),
        (".pooled.npy", lambda raw: npy((5,), body=bytes(10)), "differ in shape"),
        (".json", lambda raw: b"[1]", "lacks one of"),
        (".json", lambda raw: b"{" * 10**5, "cannot be read"),
        (".json", lambda raw: raw.replace(b"image-1", b"image-0"), "stands twice"),
        (".json", lambda raw: raw.replace(b'"width": 6', b'"width": -6'), "no image has"),
        (".json", lambda raw: raw.replace(b'"width": 6', b'"width": 6.5'), "another type"),
        (".json", lambda raw: raw.replace(b'"key": "image-1"', b'"key": ["image-1"]'), "another type"),
    ],
)
def test_webdataset_members_that_lie(export, refused, suffix, content, match):
    path = export("webdataset")
    retar(path, replaced(suffix, content))
    refused("webdataset", path, match)


def test_webdataset_members_twice_and_missing(export, refused):
    path = export("webdataset")
    retar(path, lambda members: [*members[:1], *members])
    refused("webdataset", path, "stands twice")
    path = path.rename(path.with_name("old"))
    path = export("webdataset")
    retar(path, lambda members: members[1:])
    refused("webdataset", path, "a sample holds")


def test_webdataset_with_holes_of_ten_gigabytes(export, refused):
    """A sparse member stores nothing and claims anything."""
    path = export("webdataset")
    raw = bytearray((path / "images-000000.tar").read_bytes())
    raw[156:157] = b"S"
    raw[124:136] = b"\x80" + GIGABYTES.to_bytes(11, "big")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    (path / "images-000000.tar").write_bytes(raw)
    refused("webdataset", path, "is not one of an export|cannot be read")


# --- Hugging Face ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../texts/data-00000-of-00001.arrow", "/etc/passwd", "", "a/b.arrow", 5, "x.pkl"])
def test_huggingface_files_elsewhere(export, refused, name):
    path = export("huggingface")
    state = json.loads((path / "images" / "state.json").read_text())
    state["_data_files"] = [{"filename": name}]
    (path / "images" / "state.json").write_text(json.dumps(state))
    refused("huggingface", path, "it lists the file")


def test_huggingface_links_and_indices(export, refused):
    path = export("huggingface")
    data = path / "images" / "data-00000-of-00001.arrow"
    data.rename(path.with_name("outside.arrow"))
    data.symlink_to(path.with_name("outside.arrow"))
    with pytest.raises(CompalError, match="symbolic link"):
        module("huggingface").load(path, path.with_name("stores"))
    state = json.loads((path / "images" / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (path / "images" / "state.json").write_text(json.dumps(state))
    refused("huggingface", path, "chosen by an index")


def rewritten(path, change, **options):
    """The Arrow stream at `path` written anew, its table changed."""
    table = change(pa.ipc.open_stream(path.read_bytes()).read_all())
    chosen = pa.ipc.IpcWriteOptions(**options)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema, options=chosen) as writer:
        writer.write_table(table)


def test_huggingface_batches_that_expand(export, refused):
    path = export("huggingface")
    rewritten(path / "images" / "data-00000-of-00001.arrow", lambda table: table, compression="zstd")
    refused("huggingface", path, "compressed")


def test_huggingface_vectors_that_are_missing(export, refused):
    path = export("huggingface")

    def change(table):
        column = table.column("pooled").combine_chunks()
        gone = pa.array([None, *column.to_pylist()[1:]], column.type)
        return table.set_column(table.schema.get_field_index("pooled"), "pooled", gone)

    rewritten(path / "images" / "data-00000-of-00001.arrow", change)
    refused("huggingface", path, "a vector is missing")


def test_huggingface_types_that_are_pickles(export, canary, tmp_path):
    path = export("huggingface")

    def change(table):
        metadata = {b"ARROW:extension:name": b"arrow.py_extension_type"}
        metadata[b"ARROW:extension:metadata"] = pickle.dumps(canary)
        field = table.schema.field("source").with_metadata(metadata)
        schema = pa.schema([field if one.name == "source" else one for one in table.schema])
        return pa.Table.from_arrays(table.columns, schema=schema)

    rewritten(path / "images" / "data-00000-of-00001.arrow", change)
    module("huggingface").load(path, tmp_path / "stores")  # a column of texts; the canary looks whether it ran


# --- what all of them hold -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["webdataset", "huggingface"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"compal_format": "2"}, "it has format 2"),
        ({"compal_format": None}, "not an object of texts"),
        ({"spec": "{"}, "spec is damaged"),
        ({"spec": "[" * 100_000}, "spec is damaged"),
        ({"spec": "{}"}, "spec is damaged"),
        ({"quarantined": '[{"key": 1}]'}, "quarantined"),
        ({"quarantined": "5"}, "quarantined"),
        ({"level": "../../up"}, "spec is damaged.*level"),
        ({"level": "/etc"}, "spec is damaged.*level"),
        ({"dtype": "object"}, "object"),
        ({"pooled_dim": 10**12}, "spec is damaged.*values"),
        ({"image_shape": [10**5, 10**5]}, "spec is damaged.*values"),
        ({"pooled_dim": 5}, "."),
        ({"text_dim": 0}, "."),
    ],
    ids=str,
)
def test_notes_that_lie(export, refused, name, change, match):
    path = export(name)
    notes = json.loads((path / "compal.json").read_text())
    if set(change) <= set(notes):
        notes |= change
    else:
        notes["spec"] = canonical(json.loads(notes["spec"]) | change).decode()
    (path / "compal.json").write_text(json.dumps(notes))
    refused(name, path, match)
