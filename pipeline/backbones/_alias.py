"""Short names of exact open_clip models: the files of this folder that hold one line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...errors import UsageError
from ...stores.spec import FeatureSpec

if TYPE_CHECKING:
    from ..encoder import Encoder


def alias(name: str, target: str) -> tuple[Callable[..., FeatureSpec], Callable[..., Encoder]]:
    """`spec` and `load` of a backbone that is `open_clip:target` under the name `name`; features extracted under
    either name are the same, as the spec names the target."""

    def spec(argument: str = "", level: str = "tokens", dtype: str = "float16") -> FeatureSpec:
        if argument:
            raise UsageError(
                f"backbone '{name}' takes no argument", f"Use open_clip:{target.split('/')[0]}/{argument}."
            )
        from . import open_clip

        return open_clip.spec(target, level=level, dtype=dtype)

    def load(spec: FeatureSpec, device: str = "cpu") -> Encoder:
        from . import open_clip

        return open_clip.load(spec, device=device)

    return spec, load
