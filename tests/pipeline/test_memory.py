"""Memory does not grow with the data: four times as many images need no more of it."""

import json
import os
import subprocess
import sys

SCRIPT = """
import json, resource, sys
from pathlib import Path
import numpy as np
from compal.pipeline.encoder import load_encoder, resolve
from compal.pipeline.extract import extract
from compal.pipeline.plan import ExtractConfig
from compal.stores.items import Item

def items(count):
    return [Item.rendered(b"%d" % n, lambda n=n: np.full((8, 8, 3), n % 251, np.uint8), str(n)) for n in range(count)]

spec = resolve("random:64x512")
config = ExtractConfig(batch_size=32, part_bytes=4 * 2**20)
peaks = []
for count in (200, 800):
    summary = extract(items(count), spec, Path(sys.argv[1], str(count)), config, encoder=load_encoder(spec))
    assert summary.images == count and summary.bytes > count * 64 * 512 * 2
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""


def test_peak_memory_of_four_times_as_many_images(tmp_path):
    """600 images more are 39 MB of features, a tenth of what the process needs; parts of 4 MB come and go."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    few, many = json.loads(done.stdout)
    assert many <= 1.05 * few
