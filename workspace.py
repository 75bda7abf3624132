"""Where things lie: the workspace folder, dataset roots, defaults, and what was used last.

A `compal.toml`, found upward from the current folder, may say

    workspace = "features"            # relative to this file; default compal-work
    [roots]                           # where datasets lie
    coco = "/data/coco"
    [defaults]
    backbone = "siglip2"
    data = "coco"
    [remotes]                         # where the team shares its stores
    team = "s3://bucket/prefix"       # or file, gs, az, sftp, hf
    [remote_options.team]
    endpoint = "https://storage.example.org"

Secrets stay in the environment; a setting that looks like one is refused.

Without one the workspace is $COMPAL_HOME, else ./compal-work. Nothing is created before something is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from .config import from_dict, read_toml
from .errors import CompalError, InputError, UnknownName, UsageError
from .registry import names, split_argument

CONFIG_FILE = "compal.toml"
DEFAULT_FOLDER = "compal-work"
OWN_DATA = ("table", "folder")  # datasets that are files of the user's own, named by their path alone
OWN_PAIRS = "pairs"  # the benchmark that asks about them
TABLES = (".jsonl", ".json", ".csv", ".parquet")  # what such a table ends in
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
SECRET = re.compile(r"secret|passw|token|credential|(access|account|api|private|sas|shared)_?key|^key$|signature", re.I)
CREDENTIALS = re.compile(r"^[a-z0-9+]+://[^/@]*:[^/@]*@", re.I)
ENVIRONMENT = "Put it into the environment (AWS_SECRET_ACCESS_KEY, …), an agent or the provider's own login."


@dataclass(frozen=True)
class Defaults:
    """The [defaults] table; "" where nothing is said.

    backbone  what --backbone is
    data      what --data is
    log       what --log of `compal fit` is
    """

    backbone: str = ""
    data: str = ""
    log: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What a compal.toml may hold.

    workspace       folder of stores, runs and scores, relative to the file; "" = compal-work beside it
    roots           where data sets and benchmarks lie, a folder a name; relative ones start at the file
    defaults        what commands take where nothing is said: see `Defaults`
    remotes         where the team shares its stores, a URL or a folder a name
    remote_options  of a remote, by its name: endpoint, region, allow_http, anonymous, …
    """

    workspace: str = ""
    roots: dict[str, str] = field(default_factory=dict)
    defaults: Defaults = field(default_factory=Defaults)
    remotes: dict[str, str] = field(default_factory=dict)
    remote_options: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Remote:
    """Where stores are shared.

    name        as compal.toml calls it, or the URL itself
    url         `file://`, `s3://`, `gs://`, `az://`, `sftp://`, `ssh://`, `hf://`, or a folder
    options     endpoint, region, … (`stores.remotes.objects.OPTIONS` says which)
    trust_file  where the manifests that the user trusts are pinned, None for nowhere
    """

    name: str
    url: str
    options: dict[str, Any] = field(default_factory=dict)
    trust_file: Path | None = None


class HasFolder(Protocol):
    """A `FeatureSpec`, seen from a leaf that may not import stores."""

    @property
    def folder(self) -> str:
        """The name of the store's folder."""


@dataclass(frozen=True)
class Workspace:
    """A workspace folder and the settings that led to it. Build it with `Workspace.find`."""

    path: Path
    settings: Settings = field(default_factory=Settings)
    settings_file: Path | None = None

    @classmethod
    def find(cls, start: Path | None = None) -> Workspace:
        """The workspace of `start` (the current folder). Raises `UnknownName` for an unknown key in
        compal.toml, `UsageError` for a value of the wrong type, `InputError` if the file is not TOML."""
        start = (start or Path.cwd()).resolve()
        for folder in (start, *start.parents):
            file = folder / CONFIG_FILE
            if file.is_file():
                settings = _settings(file)
                inside = Path(settings.workspace or DEFAULT_FOLDER).expanduser()
                return cls(folder / inside, settings, file)
        home = os.environ.get("COMPAL_HOME")
        return cls(Path(home).expanduser().resolve() if home else start / DEFAULT_FOLDER)

    @classmethod
    def in_use(cls) -> Workspace:
        """The workspace that a caller works in (`used`), else that of the current folder."""
        return _in_use.get() or cls.find()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Meanwhile `in_use` is this one: what a name such as `run:ID` stands for lies here."""
        token = _in_use.set(self)
        try:
            yield
        finally:
            _in_use.reset(token)

    @classmethod
    def around(cls, store: Path) -> Workspace:
        """The workspace that a store lies in, if it has runs; else the one in use. A worker knows no more of it."""
        path = store.absolute().parent.parent
        return cls(path) if store.parent.name == "stores" and (path / "runs").is_dir() else cls.in_use()

    def at(self, path: Path) -> Workspace:
        """Another folder under the same settings."""
        return replace(self, path=Path(path).expanduser().resolve())

    @property
    def stores(self) -> Path:
        """The folder of feature stores."""
        return self.path / "stores"

    @property
    def runs(self) -> Path:
        """The folder of fitted heads."""
        return self.path / "runs"

    @property
    def pairs(self) -> Path:
        """The folder of pairs tables, one folder per dataset."""
        return self.path / "pairs"

    def find_store(self, spec: HasFolder) -> Path:
        """The folder of the store of `spec`, whether or not it exists."""
        return self.stores / spec.folder

    def list_stores(self) -> list[Path]:
        """The folders of all stores, sorted by name."""
        return sorted(file.parent for file in self.stores.glob("*/spec.json"))

    def list_runs(self) -> list[Path]:
        """The folders of all runs, sorted by name."""
        if not self.runs.is_dir():
            return []
        return sorted(path for path in self.runs.iterdir() if path.is_dir() and not path.name.startswith("."))

    def root_for(self, name: str) -> Path | None:
        """The root that compal.toml gives the dataset or benchmark `name`; a relative one starts at that file's folder.
        The benchmark of one's own pairs has that of the data in use."""
        text = self.settings.roots.get(name) or self.settings.roots.get(name.replace("_", "-"))
        if not text:
            return self._own_files() if name == OWN_PAIRS else None
        folder = self.settings_file.parent if self.settings_file else Path.cwd()
        return folder / Path(text).expanduser()

    def _own_files(self) -> Path | None:
        """The table or folder of pictures that is in use as data, None if that is a named dataset."""
        data, _ = self.choose("data")
        name, place = self.dataset(data)
        if name in OWN_DATA:
            return place
        return Path(data).expanduser() if data and name not in names("datasets") else None

    def dataset(self, data: str) -> tuple[str, Path | None]:
        """`NAME[:ROOT]` → (name, root); without ROOT the root is compal.toml's, or None."""
        name, argument = split_argument(data)
        return name, Path(argument).expanduser() if argument else self.root_for(name)

    def pairs_path(self, data: str, split: str) -> Path:
        """The pairs table of one split of `NAME[:ROOT]`. Two roots of one dataset never share a table: the
        folder's name ends in 8 digits of sha256(absolute root), or of the name where the root lies on a hub."""
        name, root = self.dataset(data)
        slug = _slug(name.replace("_", "-"))
        if root is not None:
            here = Path(str(root).partition("?")[0])
            # A dataset within another (`clic:shapes`) is a name, wherever one stands.
            inner = split_argument(str(here))[0] in names("datasets") and not here.exists()
            local = here.exists() or (here.parent.is_dir() and not inner)
            place = os.path.abspath(root) if local else str(root)
            slug += "-" + hashlib.sha256(place.encode()).hexdigest()[:8]
        return self.pairs / slug / f"{_slug(split)}.parquet"

    @property
    def remotes(self) -> list[Remote]:
        """The remotes that compal.toml names, in its order."""
        return [self.remote(name) for name in self.settings.remotes]

    def remote(self, name: str) -> Remote:
        """A remote by its name in compal.toml, by URL or by folder. Raises `UnknownName`; `UsageError` for a
        URL that holds a password."""
        url = self.settings.remotes.get(name, "")
        if not url and ("://" in name or "/" in name):
            url = name
        if not url:
            cure = f'Name it in {CONFIG_FILE}: [remotes] {name} = "s3://bucket/prefix", or give a URL.'
            raise UnknownName.among("remote", name, self.settings.remotes, cure)
        if CREDENTIALS.match(url):
            raise UsageError(f"the URL of remote '{name.rpartition('@')[2]}' holds a password", ENVIRONMENT)
        if "://" not in url:
            folder = self.settings_file.parent if self.settings_file and url != name else Path.cwd()
            url = (folder / Path(url).expanduser()).as_uri()
        return Remote(name, url.rstrip("/"), self.settings.remote_options.get(name, {}), self.path / "trust.json")

    @property
    def state_file(self) -> Path:
        """Where the names used last are remembered."""
        return self.path / "state.json"

    @property
    def state(self) -> Defaults:
        """The backbone and the data used last, "" where none. Raises `InputError` if the file is damaged."""
        try:
            return from_dict(Defaults, json.loads(self.state_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Defaults()
        except (OSError, ValueError, TypeError, AttributeError, CompalError) as error:
            cure = "Delete it; it only remembers the names used last."
            raise InputError(f"cannot use {self.state_file}: {error}", cure) from None

    def remember(self, backbone: str = "", data: str = "") -> None:
        """Keep the names just used; "" leaves the former one. Raises `InputError` if the workspace cannot be
        written."""
        try:
            former = self.state
        except InputError:
            former = Defaults()
        latest = Defaults(backbone or former.backbone, data or former.data)
        if latest != former:
            names = {"backbone": latest.backbone, "data": latest.data}
            write_atomically(self.state_file, json.dumps(names, indent=1) + "\n")

    def choose(self, what: Literal["backbone", "data"], given: str = "", fallback: str = "") -> tuple[str, str]:
        """The name to use and where it comes from, for the command to print: `given` on the command line,
        else compal.toml's, else the one used last, else `fallback`."""
        if given:
            return given, "given"
        if written := getattr(self.settings.defaults, what):
            return written, str(self.settings_file)
        if remembered := getattr(self.state, what):
            return remembered, "used last"
        return fallback, "default"


_in_use: ContextVar[Workspace | None] = ContextVar("workspace in use", default=None)


def _settings(file: Path) -> Settings:
    """Read and check a compal.toml; every message starts with the file."""
    data = read_toml(file)
    try:
        settings = from_dict(Settings, data)
        _check_remotes(settings)
        return settings
    except CompalError as error:
        raise type(error)(f"{file}: {error.what}", error.cure) from None


def _check_remotes(settings: Settings) -> None:
    for name, url in settings.remotes.items():
        if CREDENTIALS.match(url):
            raise UsageError(f"'remotes.{name}' holds a password", ENVIRONMENT)
    for name, options in settings.remote_options.items():
        if name not in settings.remotes:
            raise UnknownName.among("remote", name, settings.remotes, "Its options need its URL: [remotes]")
        for key, value in options.items():
            if SECRET.search(key):
                raise UsageError(f"'remote_options.{name}.{key}' looks like a secret", ENVIRONMENT)
            if not isinstance(value, str | int | float | bool):
                raise UsageError(f"setting 'remote_options.{name}.{key}' must be a text, a number or true or false")


def _slug(text: str) -> str:
    """A file name for `text`: itself where that is safe, else its safe characters and a hash."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        return text
    safe = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")
    return f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".lstrip("-")


def write_atomically(path: Path, text: str) -> None:
    """Write beside, sync, rename: a reader sees the old file or the new one."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        cure = "Choose a writable workspace in compal.toml or $COMPAL_HOME."
        raise InputError(f"cannot write {path}: {error.strerror or error}", cure) from None
