"""sftp:// against a server of our own: a store goes there and comes back, and an unknown host is refused."""

import os
import socket
import threading

import pytest

from compal.errors import RemoteError, VerificationError
from compal.stores.remotes.objects import connect
from compal.stores.remotes.transfer import pull, push
from compal.stores.store import Store
from compal.stores.verify import verify
from compal.workspace import Remote

paramiko = pytest.importorskip("paramiko")


class Login(paramiko.ServerInterface):
    def __init__(self, key):
        self.key = key

    def check_auth_publickey(self, username, key):
        return paramiko.AUTH_SUCCESSFUL if key == self.key else paramiko.AUTH_FAILED

    def check_channel_request(self, kind, chanid):
        return paramiko.OPEN_SUCCEEDED

    def get_allowed_auths(self, username):
        return "publickey"


class Handle(paramiko.SFTPHandle):
    def stat(self):
        return paramiko.SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))


def refusing(call):
    """What an OSError is in the protocol."""

    def method(*arguments):
        try:
            return call(*arguments)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)

    return method


class Disk(paramiko.SFTPServerInterface):
    """Real paths, and OpenSSH's two renames: the plain one never overwrites, the extended one does."""

    attributes = staticmethod(paramiko.SFTPAttributes.from_stat)

    @refusing
    def open(self, path, flags, attr):
        mode = "r+b" if flags & os.O_RDWR else "wb" if flags & os.O_WRONLY else "rb"
        handle = Handle(flags)
        handle.readfile = handle.writefile = os.fdopen(os.open(path, flags, 0o644), mode)
        return handle

    @refusing
    def list_folder(self, path):
        found = []
        for entry in os.scandir(path):
            found.append(self.attributes(entry.stat(), entry.name))
        return found

    @refusing
    def stat(self, path):
        return self.attributes(os.stat(path))

    lstat = stat

    @refusing
    def remove(self, path):
        os.remove(path)
        return paramiko.SFTP_OK

    @refusing
    def mkdir(self, path, attr):
        os.mkdir(path)
        return paramiko.SFTP_OK

    @refusing
    def rename(self, old, new):
        os.link(old, new)
        os.remove(old)
        return paramiko.SFTP_OK

    @refusing
    def posix_rename(self, old, new):
        os.replace(old, new)
        return paramiko.SFTP_OK


@pytest.fixture
def server(tmp_path):
    """A remote in `tmp_path / "there"`."""
    key = paramiko.ECDSAKey.generate()
    key.write_private_key_file(str(tmp_path / "key"))
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    transports = []

    def serve():
        while True:
            try:
                transport = paramiko.Transport(listening.accept()[0])
            except OSError:
                return
            transports.append(transport)
            transport.add_server_key(key)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, Disk)
            transport.start_server(server=Login(key), event=threading.Event())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {key.get_name()} {key.get_base64()}\n")
    options = {"key_file": f"{tmp_path}/key", "known_hosts": f"{tmp_path}/known", "username": "ann", "timeout": 5}
    yield Remote("lab", f"sftp://127.0.0.1:{port}{tmp_path}/there", options)
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    for transport in transports:
        transport.close()
    thread.join(2)


def test_a_store_goes_there_and_back(server, filled, tmp_path, spec):
    pushed = push(filled.path, server)
    assert (pushed.parts, pushed.conflicts, pushed.equal) == (3, (), True)
    there = tmp_path / "there" / spec.folder
    assert verify(there) == []
    bob = tmp_path / "bob" / spec.folder
    assert pull(server, spec.folder, bob).parts == 3
    assert verify(bob) == []
    assert (Store.open(bob).image_tokens(["a", "e"]) == filled.image_tokens(["a", "e"])).all()
    assert push(bob, server).parts == 0


def test_objects(server, tmp_path):
    objects = connect(server)
    assert (objects.get("a/b", 10), objects.size("a/b"), objects.names("a")) == (None, None, [])
    assert objects.create("a/b", b"0123456789")
    assert not objects.create("a/b", b"other")
    assert not objects._rename_new(objects._at("a/b"), objects._at("a/b")), "a rename does not overwrite"
    objects.replace("a/b", b"9876543210")
    assert objects.get_ranges("a/b", [(0, 2), (7, 10)]) == [b"98", b"210"]
    (tmp_path / "local").write_bytes(b"98")
    objects.get_file("a/b", tmp_path / "local", 10)
    assert (tmp_path / "local").read_bytes() == b"9876543210"
    with pytest.raises(VerificationError, match="its manifest lists 12"):
        objects.get_file("a/b", tmp_path / "new", 12)
    assert (objects.names("a"), objects.folders()) == (["a/b"], ["a"])
    objects.delete("a/b")
    objects.delete("a/b")


def test_an_unknown_host_is_refused(server, tmp_path):
    (tmp_path / "known").write_text("")
    with pytest.raises(RemoteError, match="not found in known_hosts"):
        connect(server)
