"""Arrow messages that would take more memory than the file they stand in: refused before they are read.

A compressed buffer names its own size, so that 100 KB can claim 10 GB. pyarrow decompresses without asking and
does not say beforehand what is compressed; so the one field of the flatbuffer is read here.
"""

from __future__ import annotations

import struct
from typing import Any

import pyarrow as pa

MAGIC = b"ARROW1"
HEADER, COMPRESSION, DICTIONARIES, BATCHES = 2, 3, 2, 3  # slots in Message, RecordBatch, Footer, Footer
BLOCK = struct.Struct("<qixxxxq")  # of a footer: offset, length of the metadata, length of the body


def check_file(data: memoryview) -> None:
    """Raises `pa.ArrowInvalid` unless the batches that an Arrow file's footer lists are uncompressed, and it has no
    dictionaries. What else is wrong with the file is left to the reader."""
    try:
        if bytes(data[-len(MAGIC) :]) != MAGIC:
            raise pa.ArrowInvalid("it does not end as an Arrow file")
        (length,) = struct.unpack_from("<i", data, len(data) - len(MAGIC) - 4)
        footer = data[len(data) - len(MAGIC) - 4 - length : len(data) - len(MAGIC) - 4]
        root = _offset(footer, 0)
        if _blocks(footer, root, DICTIONARIES):
            raise pa.ArrowInvalid("it has dictionaries")
        whole = pa.py_buffer(data)
        for offset in _blocks(footer, root, BATCHES):
            if not 0 <= offset < len(data):
                raise pa.ArrowInvalid(f"its footer points to byte {offset}")
            check_message(pa.ipc.read_message(pa.BufferReader(whole.slice(offset))))
    except (struct.error, EOFError) as error:
        raise pa.ArrowInvalid(f"its footer is damaged: {error}") from None


def check_message(message: Any) -> None:
    """Raises `pa.ArrowInvalid` for a dictionary, and for a batch whose buffers are compressed."""
    if message.type == "schema":
        return
    if message.type != "record batch":
        raise pa.ArrowInvalid(f"it holds a {message.type}")
    metadata = memoryview(message.metadata)
    try:
        header = _field(metadata, _offset(metadata, 0), HEADER)
        batch = None if header is None else _offset(metadata, header)
        if batch is None or _field(metadata, batch, COMPRESSION) is not None:
            raise pa.ArrowInvalid("its buffers are compressed")
    except struct.error as error:
        raise pa.ArrowInvalid(f"a message is damaged: {error}") from None


def _offset(data: memoryview, at: int) -> int:
    """Where the reference at `at` points to."""
    return at + int(_unpack("<I", data, at))


def _field(data: memoryview, table: int, slot: int) -> int | None:
    """Where the field `slot` of the table at `table` stands, None if the table has none."""
    vtable = table - int(_unpack("<i", data, table))
    if 4 + 2 * slot >= int(_unpack("<H", data, vtable)):
        return None
    offset = int(_unpack("<H", data, vtable + 4 + 2 * slot))
    return table + offset if offset else None


def _blocks(data: memoryview, table: int, slot: int) -> list[int]:
    field = _field(data, table, slot)
    if field is None:
        return []
    vector = _offset(data, field)
    count = int(_unpack("<I", data, vector))
    if count * BLOCK.size > len(data):
        raise pa.ArrowInvalid(f"its footer claims {count:,} batches")
    return [BLOCK.unpack_from(data, vector + 4 + number * BLOCK.size)[0] for number in range(count)]


def _unpack(form: str, data: memoryview, at: int) -> Any:
    if at < 0:
        raise struct.error(f"a reference to byte {at}")
    return struct.unpack_from(form, data, at)[0]
