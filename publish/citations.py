"""What a run, a row of scores, a store or a part used, as citations: methods, encoder, data, software.

A row leads to its run, a run to its features and its pairs, a store to its encoder and its items, each by the
provenance that is saved with it; the parts on the way name their papers themselves (`sources`).
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__, registry
from ..config import read_toml
from ..errors import InputError
from ..registry import split_argument
from ..workspace import Workspace
from . import bibtex, sources
from .bibtex import Entry

SECTIONS = ("methods", "encoders", "data", "benchmarks", "software")
LORA = ("arXiv:2106.09685",)
PATCHING = ("arXiv:2109.01903", "arXiv:2208.05592")
REGIONS = ("arXiv:2506.09691",)
"""Structure-guided inference: segments against regions by `maxsim`."""
SOFTWARE = {
    "compal": "software:compal",
    "torch": "arXiv:1912.01703",
    "lightning-fabric": "software:falcon2019lightning",
    "open_clip_torch": "software:ilharco2021openclip",
    "timm": "software:wightman2019timm",
    "transformers": "software:wolf2020transformers",
    "spacy": "software:honnibal2020spacy",
    "nltk": "doi:10.1145/219717.219748",
    "faiss": "arXiv:2401.08281",
    "safetensors": "software:safetensors",
    "zarr": "software:zarr",
    "pyarrow": "software:arrow",
    "numpy": "software:harris2020array",
}
_TIMM = re.compile(r"SigLIP|PE-|ViTamin|MobileCLIP|EVA|convnext|vit_medium|nllb", re.I)


@dataclass(frozen=True)
class Citation:
    """An entry, the source it was found by, in which of `SECTIONS` it stands and what it is cited for."""

    entry: Entry
    source: str
    section: str
    used_for: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, with the entry as BibTeX beside its fields."""
        told = {"key": self.entry.key, "type": self.entry.kind, "source": self.source, "section": self.section}
        return told | {
            "used_for": list(self.used_for),
            "fields": self.entry.fields,
            "text": self.entry.text(),
            "bibtex": self.entry.bibtex(),
        }


@dataclass
class Bibliography:
    """What is to be cited, in order of appearance within its section. Filled by `add` and `of_…`.

    without  what was used and names no paper, with what it says instead
    """

    workspace: Workspace
    without: dict[str, str] = field(default_factory=dict)
    _uses: dict[str, tuple[str, dict[str, None]]] = field(default_factory=dict)
    _versions: dict[str, str] = field(default_factory=dict)
    _own: dict[str, Entry] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def citations(self) -> list[Citation]:
        """All of them, by section; software with the versions that were used."""
        found = []
        for source, (section, uses) in self._uses.items():
            entry = self._own.get(source) or bibtex.entry_of(source)
            version = self._versions.get(source)
            if version:
                entry = dataclasses.replace(entry, fields=entry.fields | {"note": f"Version {bibtex.escaped(version)}"})
            found.append(Citation(entry, source, section, tuple(uses)))
        packages = list(SOFTWARE.values())
        place = {source: number for number, source in enumerate(packages)}
        return sorted(found, key=lambda one: (SECTIONS.index(one.section), place.get(one.source, -1)))

    def add(self, section: str, what: str, those: Iterable[str], instead: str = "") -> None:
        """Cite `those` sources for `what`; without any, note what it says `instead`."""
        listed = list(those)
        for source in listed:
            self._uses.setdefault(source, (section, {}))[1].setdefault(what)
        # A recipe without a paper is its head and its objective, which are told by themselves.
        if not listed and not what.startswith("recipe"):
            self.without.setdefault(what, instead)

    def software(self, versions: Mapping[str, str], *names: str, commit: str | None = None) -> None:
        """Cite what is known of `names` and of the packages of `versions`."""
        for name in dict.fromkeys([*SOFTWARE, *names]):
            if name not in SOFTWARE or (name not in versions and name not in names):
                continue
            self.add("software", f"software {name}", [SOFTWARE[name]])
            version = versions.get(name, "")
            if version and name == "compal" and commit:
                version = f"{version}, commit {commit[:12]}"
            if version:
                self._versions.setdefault(SOFTWARE[name], version)

    # --- parts ------------------------------------------------------------------------------------------

    def part(self, kind: str, name: str, argument: str = "") -> None:
        """A part by kind and name, and what it is made of. One from outside the project is noted."""
        singular = registry.KINDS[kind].singular
        what = f"{singular} {name}{f':{argument}' if argument else ''}"
        if what in self._seen:
            return
        self._seen.add(what)
        section = {"backbones": "encoders", "datasets": "data", "benchmarks": "benchmarks"}.get(kind, "methods")
        if name not in registry.names(kind):
            self.add(section, what, (), "a part outside the project")
            return
        self.add(section, what, sources.of_part(kind, name, argument), _instead(kind, name))
        if kind in ("recipes", "setups"):
            self._recipe(registry.path(kind, name))

    def backbone(self, name: str) -> None:
        """An encoder as a spec names it; tuned towers lead to the run that tuned them."""
        kind, argument = split_argument(name)
        if kind == "run":
            folder = Path(argument).parent if Path(argument).name == "towers" else self.workspace.runs / argument
            if (folder / "provenance.json").is_file():
                self.run(folder)
                return
            self.add("encoders", f"backbone {name}", (), "the run is not here")
            return
        self.part("backbones", kind, argument)
        alias = re.search(r"\bopen_clip:(\S+?);", registry.summary("backbones", kind)) if not argument else None
        resolved = argument or (alias[1] if alias and kind != "open_clip" else "")
        if kind == "hf":
            self.software({}, "transformers", "torch")
        elif kind == "open_clip" or alias or kind == "shapes-vit":
            self.software({}, "open_clip_torch", "torch", *(["timm"] if _TIMM.search(resolved) else []))

    def dataset(self, name: str, said: Mapping[str, str] | None = None) -> None:
        """A dataset by name, with what its pairs table says of it: its citation may be more than the part's own."""
        citation = (said or {}).get("citation", "")
        more, entries = sources.sources_in(citation), _entries_in(citation)
        if more or entries:
            for entry in entries:
                self._own.setdefault(entry.sources[0], entry)
            self.add("data", f"dataset {name}", [*(entry.sources[0] for entry in entries), *more])
            self._seen.add(f"dataset {name}")
        kind, inner = split_argument(name)
        self.part("datasets", kind)
        if kind == "clic" and inner:
            self.dataset(split_argument(inner)[0])
        for table in (said or {}).get("negatives", "").split(", "):
            method = next((one for one in registry.names("negatives") if table.startswith(one)), "")
            if method:
                self.part("negatives", method)
                self.software({}, *(["faiss"] if method == "mined" else []))

    def _recipe(self, file: Path) -> None:
        """The parts that a recipe or set-up names."""
        tables = read_toml(file)
        if "recipe" in tables:
            self.part("recipes", str(tables["recipe"]))
            self.backbone(str(tables.get("backbone", "")))
            self.dataset(split_argument(str(tables.get("dataset", "")))[0])
        self._method(tables, "tokens")

    def _method(self, config: Mapping[str, Any], level: str) -> None:
        """Head and objective of a configuration, and what their options bring."""
        for kind, table in (("heads", "head"), ("losses", "loss")):
            told = config.get(table)
            if isinstance(told, Mapping) and told.get("name"):
                self.head(str(told["name"]), level) if kind == "heads" else self.part(kind, str(told["name"]))
        if config.get("head", {}).get("lora"):
            self.add("methods", "low-rank tuning", LORA)
        if config.get("data", {}).get("mined", {}).get("k"):
            self.part("negatives", "mined")
            self.software({}, "faiss")
        self.software({}, "compal", "torch")

    def head(self, name: str, level: str = "tokens") -> None:
        """A head on features of a level."""
        self.part("heads", name)
        if name == "maxsim" and level.startswith("regions"):
            self.add("methods", "maxsim on regions", REGIONS)

    # --- what is saved ----------------------------------------------------------------------------------

    def run(self, folder: Path) -> None:
        """A run's recipe, head, objective, features, pairs and software. Raises `InputError` for a damaged one."""
        if str(folder.resolve()) in self._seen:
            return
        self._seen.add(str(folder.resolve()))
        told = read_json(folder / "provenance.json")
        features = told.get("features", {})
        if (folder / "config.toml").is_file():
            config = read_toml(folder / "config.toml")
            name = recipe_of(str(told.get("command", "")), folder.name)
            for kind in ("setups", "recipes") if name else ():
                if name in registry.names(kind):
                    self.add("methods", f"recipe {name}", sources.of_part(kind, name))
            self._method(config, str(features.get("level", "tokens")))
        self._ends(told.get("patch") or {})
        if features.get("backbone"):
            self.backbone(str(features["backbone"]))
        for table in told.get("pairs", {}).values():
            self._pairs(Path(str(table.get("path", ""))), table.get("said"))
        self.software({**told.get("versions", {})}, "zarr", commit=told.get("commit"))

    def _ends(self, patch: Mapping[str, Any]) -> None:
        """The two ends of a patched run."""
        if patch:
            self.add("methods", "patched weights", PATCHING)
        for end in (patch[one] for one in ("base", "tuned") if one in patch):
            name = str(end.get("name", ""))
            folder = self.workspace.runs / split_argument(name)[1] if name.startswith("run:") else None
            if folder is None and name in {run.name for run in self.workspace.list_runs()}:
                folder = self.workspace.runs / name
            if folder is not None and (folder / "provenance.json").is_file():
                self.run(folder)

    def _pairs(self, path: Path, said: Mapping[str, str] | None) -> None:
        """The data set of a table of pairs, by what the run kept of it, else by the table itself, else by its name."""
        if said is None and path.is_file():
            from ..stores.pairs import read_info

            said = read_info(path)
        slug = re.sub(r"-[0-9a-f]{8}$", "", path.parent.name)
        self.dataset((said or {}).get("dataset") or slug, said)

    def scores(self, meta: Mapping[str, Any]) -> None:
        """A row of scores by its `scores.json`: benchmark, encoder, head and, where it is there, its run."""
        benchmark = str(meta.get("benchmark", ""))
        named = sources.sources_in(str(meta.get("citation", "")))
        if benchmark in registry.names("benchmarks"):
            self.part("benchmarks", benchmark)
        self.add("benchmarks", f"benchmark {benchmark}", named, str(meta.get("citation", "")))
        store, scorer = meta.get("store") or {}, meta.get("scorer") or {}
        if store.get("backbone"):
            self.backbone(str(store["backbone"]))
        head = re.search(r"\balign\.heads\.(\w+)\.", str(scorer.get("class", "")))
        if head:
            self.head(head[1].replace("_", "-"), str(store.get("level", "tokens")))
        run = Path(str(scorer.get("checkpoint", ""))).parent.parent
        if scorer.get("checkpoint") and (run / "provenance.json").is_file():
            self.run(run)
        index = (scorer.get("rerank") or {}).get("index", "flat") if isinstance(scorer.get("rerank"), dict) else "flat"
        self.software(meta.get("versions") or {}, "zarr", *(["faiss"] if index != "flat" else []),
                      commit=meta.get("commit"))  # fmt: skip

    def store(self, path: Path) -> None:
        """A store's encoder, and the datasets and benchmarks whose items it holds."""
        from ..stores.store import Store

        opened = Store.open(path)
        self.backbone(opened.spec.backbone)
        for name in items_of(path):
            if name in registry.names("datasets"):
                self.dataset(name)
            if name in registry.names("benchmarks"):
                self.part("benchmarks", name)
        if str(opened.spec.extra.get("segmenter", "")).startswith("spacy"):
            self.software({}, "spacy")
        self.software({"compal": __version__}, "zarr", "pyarrow", "numpy")


def _instead(kind: str, name: str) -> str:
    """What to say of a part without a paper."""
    if kind not in ("datasets", "benchmarks"):
        return "of compal itself" if (kind, name) == ("backbones", "shapes-vit") else ""
    said = sources.said_of(kind, name, "citation")
    return "of compal itself" if said == "compal" else said


def items_of(store: Path) -> list[str]:
    """The datasets and benchmarks that a store's items were listed from."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found: dict[str, None] = {}
    for file in sorted((store / "tables").glob("*.parquet")):
        firsts = pc.list_element(pc.split_pattern(pq.read_table(file, columns=["source"])["source"], "/"), 0)
        found.update(dict.fromkeys(pc.unique(firsts).to_pylist()))
    return sorted(name for name in found if name)


def recipe_of(command: str, folder: str) -> str:
    """The recipe or set-up that a run's command names, else its folder; "" where that is one of the user's."""
    known = {*registry.names("recipes"), *registry.names("setups")}
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    after = words[words.index("fit") + 1 :] if "fit" in words else []
    stem = re.sub(r"-[0-9a-f]{8}$", "", folder)
    return next((word for word in [*after, stem] if word in known), "")


def _entries_in(text: str) -> list[Entry]:
    """BibTeX that a data set's card brings; what is not whole is left."""
    if "@" not in text:
        return []
    try:
        return bibtex.parse(text[text.index("@") :])
    except InputError:
        return []


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that a run keeps. Raises `InputError`."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", "Name a run that compal fit wrote.") from None
    if not isinstance(told, dict):
        raise InputError(f"{path} is no provenance", "Name a run that compal fit wrote.")
    return told
