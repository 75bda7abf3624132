"""Where things lie, and what is remembered."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from compal.errors import InputError, UnknownName, UsageError
from compal.workspace import Defaults, Workspace


@pytest.fixture(autouse=True)
def no_home(monkeypatch):
    monkeypatch.delenv("COMPAL_HOME", raising=False)


def written(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compal.toml").write_text(text)
    return folder


def test_without_a_file_the_workspace_is_here(tmp_path):
    workspace = Workspace.find(tmp_path)
    assert workspace.path == tmp_path / "compal-work"
    assert [workspace.stores.name, workspace.runs.name, workspace.pairs.name] == ["stores", "runs", "pairs"]
    assert not workspace.path.exists(), "looking creates nothing"


def test_the_environment_comes_after_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPAL_HOME", str(tmp_path / "home"))
    assert Workspace.find(tmp_path).path == tmp_path / "home"
    written(tmp_path, "")
    assert Workspace.find(tmp_path).path == tmp_path / "compal-work"


def test_the_file_is_found_upward(tmp_path):
    written(tmp_path, 'workspace = "features"\n[roots]\ncoco = "photos/coco"\nflickr = "/data/flickr"\n')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    workspace = Workspace.find(below)
    assert workspace.path == tmp_path / "features"
    assert workspace.root_for("coco") == tmp_path / "photos" / "coco"
    assert workspace.root_for("flickr") == Path("/data/flickr")
    assert workspace.root_for("shapes") is None
    assert workspace.dataset("coco") == ("coco", tmp_path / "photos" / "coco")
    assert workspace.dataset("coco:/else") == ("coco", Path("/else"))
    assert workspace.dataset("shapes") == ("shapes", None)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('worspace = "x"', UnknownName, r"compal\.toml: no setting 'worspace'\. Did you mean 'workspace'\?"),
        ("[defaults]\nbackbon = 'x'", UnknownName, "Did you mean 'defaults.backbone'"),
        ("workspace = 3", UsageError, r"compal\.toml: setting 'workspace' must be str"),
        ("[roots]\ncoco = 3", UsageError, "roots.coco"),
        ("workspace = ", InputError, "not valid TOML"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, error, message):
    written(tmp_path, text)
    with pytest.raises(error, match=message) as caught:
        Workspace.find(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_last_names_are_remembered(tmp_path):
    workspace = Workspace.find(tmp_path)
    assert workspace.state == Defaults()
    workspace.remember(backbone="siglip2")
    workspace.remember(data="coco:/x")
    assert workspace.state == Defaults("siglip2", "coco:/x")
    assert [path.name for path in workspace.path.iterdir()] == ["state.json"], "nothing is left beside it"


def test_choosing_a_name(tmp_path):
    workspace = Workspace.find(tmp_path)
    assert workspace.choose("data", fallback="shapes") == ("shapes", "default")
    workspace.remember(data="coco")
    assert workspace.choose("data", fallback="shapes") == ("coco", "used last")
    written(tmp_path, '[defaults]\ndata = "folder:/x"\n')
    workspace = Workspace.find(tmp_path)
    assert workspace.choose("data") == ("folder:/x", str(tmp_path / "compal.toml"))
    assert workspace.choose("data", "table:/y") == ("table:/y", "given")


@pytest.mark.parametrize("content", ["{", "[]", '{"data": 3}', '{"other": "x"}'])
def test_a_damaged_state_is_one_line_and_is_mended(tmp_path, content):
    workspace = Workspace.find(tmp_path)
    workspace.path.mkdir()
    workspace.state_file.write_text(content)
    with pytest.raises(InputError, match=r"state\.json.*Delete it"):
        _ = workspace.state
    workspace.remember(data="coco")
    assert json.loads(workspace.state_file.read_text()) == {"backbone": "", "data": "coco"}


def test_a_workspace_that_cannot_be_written(tmp_path):
    (tmp_path / "compal-work").write_text("a file")
    with pytest.raises(InputError, match=r"cannot write .*COMPAL_HOME"):
        Workspace.find(tmp_path).remember(data="coco")


def test_stores_and_runs_are_listed(tmp_path):
    workspace = Workspace.find(tmp_path)
    assert workspace.list_stores() == workspace.list_runs() == []
    for name in ("b", "a", "half"):
        (workspace.stores / name).mkdir(parents=True)
    for name in ("a", "b"):
        (workspace.stores / name / "spec.json").write_text("{}")
    (workspace.runs / "r1").mkdir(parents=True)
    (workspace.runs / ".staging").mkdir()
    assert [path.name for path in workspace.list_stores()] == ["a", "b"]
    assert [path.name for path in workspace.list_runs()] == ["r1"]
    assert workspace.find_store(SimpleNamespace(folder="clip-tokens-12")) == workspace.stores / "clip-tokens-12"


def test_pairs_of_two_roots_are_two_tables(tmp_path, monkeypatch):
    written(tmp_path, '[roots]\ncoco = "/data/coco"\n')
    workspace = Workspace.find(tmp_path)
    assert workspace.pairs_path("shapes", "train") == workspace.pairs / "shapes" / "train.parquet"
    here, there = workspace.pairs_path("coco:/x", "val"), workspace.pairs_path("coco:/y", "val")
    assert here != there
    assert here.parent.name.startswith("coco-")
    assert workspace.pairs_path("coco", "val") == workspace.pairs_path("coco:/data/coco", "val")
    monkeypatch.chdir(tmp_path)
    hub = workspace.pairs_path("huggingface:org/name?image=a", "val")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert workspace.pairs_path("huggingface:org/name?image=a", "val") == hub
    assert workspace.pairs_path("table:x.csv", "val") != hub
    inner = workspace.pairs_path("clic:shapes?seed=1", "val")
    assert inner != workspace.pairs_path("clic:shapes", "val")
    monkeypatch.chdir(tmp_path.parent)
    assert workspace.pairs_path("clic:shapes?seed=1", "val") == inner
    assert workspace.pairs_path("shapes", "../x").parent == workspace.pairs / "shapes"
    assert workspace.pairs_path("shapes", "a b") != workspace.pairs_path("shapes", "a-b")


# --- remotes ----------------------------------------------------------------------------------------------

TEAM = """
[remotes]
team = "s3://bucket/prefix/"
near = "shared/stores"
[remote_options.team]
endpoint = "http://127.0.0.1:9000"
allow_http = true
timeout = 5
"""


def test_remotes_are_named(tmp_path):
    workspace = Workspace.find(written(tmp_path, TEAM))
    team, near = workspace.remotes
    assert (team.name, team.url) == ("team", "s3://bucket/prefix")
    assert team.options == {"endpoint": "http://127.0.0.1:9000", "allow_http": True, "timeout": 5}
    assert team.trust_file == workspace.path / "trust.json"
    assert (near.url, near.options) == (f"file://{tmp_path}/shared/stores", {})
    assert workspace.remote("gs://other/x").url == "gs://other/x"
    assert workspace.remote(f"{tmp_path}/y").url == f"file://{tmp_path}/y"
    with pytest.raises(UnknownName, match=r"Did you mean 'team'\?.*\[remotes\] teem = "):
        workspace.remote("teem")
    assert Workspace.find(tmp_path / "else").remotes == workspace.remotes


@pytest.mark.parametrize(
    "key",
    ["secret_access_key", "password", "token", "sas_key", "key", "credential", "account_key", "aws_access_key_id"],
)
def test_secrets_belong_into_the_environment(tmp_path, key):
    written(tmp_path, f'{TEAM}{key} = "hunter2"\n')
    with pytest.raises(
        UsageError, match=rf"compal.toml: 'remote_options.team.{key}' looks like a secret.*environment"
    ) as e:
        Workspace.find(tmp_path)
    assert "hunter2" not in str(e.value)


@pytest.mark.parametrize("url", ["sftp://ann:hunter2@host/x", "s3://KEY:hunter2@bucket/x"])
def test_passwords_in_urls_are_refused_and_not_shown(tmp_path, url):
    written(tmp_path, f'[remotes]\nteam = "{url}"\n')
    for look in (lambda: Workspace.find(tmp_path), lambda: Workspace(tmp_path).remote(url)):
        with pytest.raises(UsageError, match="holds a password") as caught:
            look()
        assert "hunter2" not in str(caught.value)


def test_options_need_a_remote_and_plain_values(tmp_path):
    written(tmp_path, '[remotes]\nteam = "s3://b/x"\n[remote_options.taem]\nregion = "x"\n')
    with pytest.raises(UnknownName, match="Did you mean 'team'"):
        Workspace.find(tmp_path)
    written(tmp_path, '[remotes]\nteam = "s3://b/x"\n[remote_options.team]\nregion = ["x"]\n')
    with pytest.raises(UsageError, match="must be a text, a number"):
        Workspace.find(tmp_path)
