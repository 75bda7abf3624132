"""`faulty.backbone:TOKENSxWIDTH`: the backbone `random`, as slow and as deadly as the environment says.

FAULTY_SECONDS   each batch of images takes so long
FAULTY_MEET      FOLDER: the first batch of images waits until two processes have come to theirs
FAULTY_KILL      FOLDER:COUNT:TIMES: processes kill themselves in the midst of their COUNT-th batch of images, TIMES
                 in all
FAULTY_RANK      only the rank of this number does
FAULTY_ERROR     the second batch of images raises an InputError
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from pathlib import Path

from compal.errors import InputError
from compal.pipeline.backbones import random


def spec(argument="", level="tokens", dtype="float16"):
    made = random.spec(argument, level=level, dtype=dtype)
    return dataclasses.replace(made, backbone=made.backbone.replace("random", "faulty.backbone"))


def load(spec, device="cpu"):
    return Faulty(spec, device)


def meet(folder):
    (folder / f"here-{os.getpid()}").touch()
    deadline = time.monotonic() + 60
    while len(list(folder.glob("here-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)


class Faulty(random.RandomEncoder):
    batches = 0

    def encode_images(self, pixels):
        self.batches += 1
        if self.batches == 1 and "FAULTY_MEET" in os.environ:
            meet(Path(os.environ["FAULTY_MEET"]))
        time.sleep(float(os.environ.get("FAULTY_SECONDS", "0")))
        self._die()
        if os.environ.get("FAULTY_ERROR") and self.batches == 2:
            raise InputError("the second batch is refused", "Choose another one.")
        return super().encode_images(pixels)

    def _die(self):
        folder, _, rest = os.environ.get("FAULTY_KILL", "").partition(":")
        if not folder or os.environ.get("FAULTY_RANK", os.environ.get("RANK")) != os.environ.get("RANK"):
            return
        count, times = map(int, rest.split(":"))
        if self.batches < count:
            return
        for number in range(times):
            try:
                Path(folder, f"killed-{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
