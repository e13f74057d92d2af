"""Downloads: resumed, checked, put in place whole; and what is said where there is no network."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from unclip.checkpoint import CheckpointError
from unclip.convert import fetch
from unclip.convert.catalogue import MODELS, PublicFile, PublicModel

CONTENT = bytes(range(256)) * 4000  # a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT as any file, as badly as it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts: list[int] = []  # after how many bytes the next answers break off
        self.length: int | None = None
        self.version = '"one"'
        self.ranges: list[str | None] = []
        self.takes_ranges = True

    def address(self, name: str = "base.pt") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def _answer(self) -> bytes:
        if "absent" in self.path:
            self.send_error(404)
            return b""
        asked = self.headers.get("Range") if self.server.takes_ranges else None
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        body = CONTENT[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(self.server.length or len(body)))
        self.send_header("ETag", self.server.version)
        self.end_headers()
        return body

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        body = self._answer()
        if self.server.cuts:
            self.close_connection = True
            body = body[: self.server.cuts.pop(0)]
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def parts(folder: Path) -> list[Path]:
    return list(folder.glob(".*.part"))


def test_a_file_comes_whole(server, tmp_path):
    path = fetch.fetch(PublicFile(server.address(), SHA256, len(CONTENT)), tmp_path / "deep" / "base.pt")
    assert path.read_bytes() == CONTENT and not parts(path.parent) and server.ranges == [None]
    assert fetch.fetch(PublicFile(server.address()), path) == path and len(server.ranges) == 1


def test_a_cut_connection_is_taken_up_again(server, tmp_path):
    server.cuts = [300_000, 100_000]
    path = fetch.fetch(PublicFile(server.address(), SHA256), tmp_path / "base.pt")
    assert path.read_bytes() == CONTENT
    begun = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in server.ranges[1:]]
    assert server.ranges[0] is None and 300_000 - fetch.PIECE < begun[0] <= 300_000 < begun[1] <= 400_000


def test_an_interrupted_download_goes_on_in_the_next_call(server, tmp_path):
    server.cuts = [300_000] + [0] * fetch.TRIES
    with pytest.raises(CheckpointError, match="cut short again and again.*goes on from there"):
        fetch.fetch(PublicFile(server.address()), tmp_path / "base.pt")
    have = parts(tmp_path)[0].stat().st_size
    assert not (tmp_path / "base.pt").exists() and 300_000 - fetch.PIECE < have <= 300_000
    assert fetch.fetch(PublicFile(server.address(), SHA256), tmp_path / "base.pt").read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={have}-" and not parts(tmp_path)


def test_pieces_of_two_versions_are_never_joined(server, tmp_path):
    server.cuts = [300_000] + [0] * fetch.TRIES
    with pytest.raises(CheckpointError):
        fetch.fetch(PublicFile(server.address()), tmp_path / "base.pt")
    server.version = '"two"'
    fetch.fetch(PublicFile(server.address(), SHA256), tmp_path / "base.pt")
    assert server.ranges[-1] is None and not parts(tmp_path)


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    server.cuts, server.takes_ranges = [300_000], False
    assert fetch.fetch(PublicFile(server.address(), SHA256), tmp_path / "base.pt").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "file, said",
    [
        ({"sha256": "0" * 64}, "damaged or another file: its sha256 is"),
        ({"size": 17}, "the published file is of 17"),
    ],
)
def test_another_file_is_refused(server, tmp_path, file, said):
    with pytest.raises(CheckpointError, match=said):
        fetch.fetch(PublicFile(server.address(), **file), tmp_path / "base.pt")
    assert not (tmp_path / "base.pt").exists() and not parts(tmp_path)


def test_a_longer_file_than_the_server_said_is_refused(server, tmp_path):
    part = tmp_path / "part"
    part.write_bytes(CONTENT + b"more")
    with pytest.raises(CheckpointError, match="cut short or another file"):
        fetch._check_length(part, len(CONTENT), remove=True)
    assert not part.exists()


def test_a_full_disk_is_seen_before(server, tmp_path):
    server.length = 10**18
    with pytest.raises(CheckpointError, match="takes 1000000000.0 GB, and .* are free.*UNCLIP_CACHE"):
        fetch.fetch(PublicFile(server.address()), tmp_path / "base.pt")
    assert server.ranges == []


def model(address: str) -> PublicModel:
    glide = MODELS["glide"]
    files = {role: PublicFile(f"{address}/{file.name}") for role, file in glide.files.items()}
    return PublicModel("glide", "glide", "a test", glide.licence, files)


def test_without_a_network_all_missing_files_are_named(cache):
    address = "http://127.0.0.1:1"  # where nothing listens
    have = cache / "glide" / "base.pt"
    have.parent.mkdir(parents=True)
    have.write_bytes(CONTENT)
    with warnings.catch_warnings(), pytest.raises(CheckpointError) as error:
        warnings.simplefilter("ignore")
        fetch.fetch_model(model(address))
    said = str(error.value)
    assert "upsample.pt cannot be reached: there is no connection" in said and "needs 5 more files" in said
    for name in ("upsample.pt", "clip_image_enc.pt", "clip_text_enc.pt", "encoder.json.gz", "vocab.bpe.gz"):
        assert f"{address}/{name}\n    -> {cache / 'glide' / name}" in said
    assert "base.pt\n" not in said


def test_a_file_that_is_gone_from_the_server(server):
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match="404"):
        warnings.simplefilter("ignore")
        fetch.fetch_model(model(server.address("absent")))


def test_files_put_there_by_hand_are_taken(cache, tmp_path):
    mine = model("http://127.0.0.1:1")
    places = [cache / "glide", tmp_path / "own"]
    for number, file in enumerate(mine.files.values()):
        path = places[number % 2] / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    found = fetch.fetch_model(mine, tmp_path / "own")
    assert found.keys() == mine.files.keys() and all(path.read_bytes() == b"x" for path in found.values())


def test_a_file_of_another_length_by_hand_is_refused(cache):
    (cache / "glide").mkdir(parents=True)
    (cache / "glide" / "vocab.bpe.gz").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="vocab.bpe.gz is of 1 bytes and should be of 213544"):
        fetch.fetch_model(MODELS["glide"])


def test_the_licence_is_shown_once(cache):
    with pytest.warns(UserWarning, match="karlo is published under CreativeML OpenRAIL-M.*Model card: https"):
        fetch.notice(MODELS["karlo"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fetch.notice(MODELS["karlo"])
    with pytest.warns(UserWarning, match="glide is published under MIT.*no people"):
        fetch.notice(MODELS["glide"])


def test_karlo_comes_from_the_hub_at_its_revision(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, **options: asked.update(options, name=name) or str(tmp_path),
    )
    with pytest.warns(UserWarning, match="karlo"):
        assert fetch.fetch_snapshot(MODELS["karlo"]) == tmp_path
    assert asked["name"] == "kakaobrain/karlo-v1-alpha" and len(asked["revision"]) == 40
    assert "*/*.safetensors" in asked["allow_patterns"]


@pytest.mark.parametrize("name, role, hub", [
    ("karlo", "", "kakaobrain/karlo"), ("kandinsky-2.2", "prior", "kandinsky-community/kandinsky-2-2-prior"),
    ("kandinsky-2.2-inpaint", "decoder", "kandinsky-community/kandinsky-2-2-decoder-inpaint"),
])  # fmt: skip
def test_a_model_of_the_hub_without_a_network(monkeypatch, cache, name, role, hub):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_, **__) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with (
        pytest.warns(UserWarning, match=name),
        pytest.raises(CheckpointError, match=f"(?s)no connection.*index.json, .*{hub}") as error,
    ):
        fetch.fetch_snapshot(MODELS[name], role)
    place = cache / name / role
    assert f"-> {place}" in str(error.value)
    place.mkdir(parents=True)
    (place / "model_index.json").write_text("{}")
    assert fetch.fetch_snapshot(MODELS[name], role) == place
