"""Where a run's numbers go beside metrics.jsonl: TensorBoard always, Weights & Biases where it is asked for.

Weights & Biases sends nothing without a key (WANDB_API_KEY, or what `wandb login` has kept): the run is then kept in
the run's folder, for `wandb sync`. WANDB_MODE, WANDB_PROJECT and WANDB_ENTITY are heard. No key is logged.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import InputError, UnknownName

LOGGERS = ("tensorboard", "wandb")
PROJECT = "compal"


class Curves(Protocol):
    """Takes numbers by name and step."""

    def add(self, step: int, values: dict[str, float]) -> None:
        """The numbers of a step."""

    def close(self) -> None:
        """All that was taken is kept."""


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """The loggers named, several with commas between, each once. Raises `UnknownName`, and `InputError` for one whose
    library is not installed."""
    found = tuple(dict.fromkeys(name.strip() for text in names for name in text.split(",") if name.strip()))
    for name in found:
        if name not in LOGGERS:
            raise UnknownName.among("logger", name, LOGGERS)
    if "wandb" in found and importlib.util.find_spec("wandb") is None:
        raise InputError("Weights & Biases is not installed", "pip install 'compal[wandb]', or drop it from --log.")
    return found


def opened(names: Sequence[str], run_dir: Path, step: int, config: dict[str, Any]) -> list[Curves]:
    """TensorBoard and those named, of a run that goes on after `step`."""
    found: list[Curves] = [TensorBoard(run_dir / "tensorboard", step)]
    return [*found, WeightsAndBiases(run_dir, config)] if "wandb" in names else found


class TensorBoard:
    """Curves in a folder. Of a run that goes on, those after `step` are taken back."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # 0.2 s of imports that only fitting needs

        self._writer = SummaryWriter(folder, purge_step=step + 1 if step else None)  # type: ignore[no-untyped-call]

    def add(self, step: int, values: dict[str, float]) -> None:
        for name, number in values.items():
            self._writer.add_scalar(name, number, step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._writer.close()  # type: ignore[no-untyped-call]


class WeightsAndBiases:
    """A run there, whose id is that of this folder: a run that goes on is the same run there.

    Curves are over our `step`: theirs never goes back, ours does when a run goes on from its last checkpoint.
    """

    def __init__(self, run_dir: Path, config: dict[str, Any]) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
        place = hashlib.sha256(str(run_dir.absolute()).encode()).hexdigest()[:8]
        with _silent():
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT), name=run_dir.name, id=f"{run_dir.name}-{place}",
                resume="allow", dir=str(run_dir), config=config, mode=mode,
                settings=wandb.Settings(silent=True, console="off"),
            )  # fmt: skip
            self._run.define_metric("*", step_metric="step")

    def add(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        with _silent():
            self._run.finish()


def _has_key() -> bool:
    """Whether Weights & Biases would find a key, in the environment or where `wandb login` keeps it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        import netrc

        file = os.environ.get("NETRC") or str(Path("~/.netrc").expanduser())
        return netrc.netrc(file).authenticators("api.wandb.ai") is not None
    except (OSError, ValueError, SyntaxError):
        return False


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Its greeting and its farewell are kept from the screen."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
