"""Push, pull and merge killed at random moments; four writers on one bucket. COMPAL_KILLS=34 kills more often."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("COMPAL_KILLS", "12"))


def work(mode, tmp_path, s3, count):
    script = Path(__file__).parent / "remote_workers.py"
    arguments = [mode, str(tmp_path), s3.endpoint, s3.bucket, str(count)]
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", ["push", "pull", "merge"])
def test_killed_at_random_moments(what, tmp_path, s3):
    assert work(f"kill_{what}", tmp_path, s3, KILLS)["killed"] >= KILLS


def test_four_writers_on_one_bucket(tmp_path, s3):
    assert work("writers", tmp_path, s3, 4) == {"writers": 4}
