"""What two stores of one plan must share: every file's bytes but the record of who wrote it and when."""

from __future__ import annotations

import json

WRITER = ("written", "digest", "parent", "sha256")


def content(folder):
    """File → bytes. What a run leaves behind (claims, plans, mail) would be seen here too."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.parent.name in ("done", "manifests") or path.name == "head.json":
            record = json.loads(data)
            data = json.dumps({key: value for key, value in record.items() if key not in WRITER}).encode()
        found[path.relative_to(folder).as_posix()] = data
    return found
