"""How training.icons fetches packages, and its command; no npm and no network."""

import hashlib
import io
import tarfile

import pytest
from icon_packages import unpacked

from training.icons import __main__ as command
from training.icons.fetch import FAMILIES, KEYWORDS, FetchError, Package, _unpack, fetch
from training.icons.names import STYLES
from unclip.data.reading import read_shards

# Fetching, by a stand-in for npm


NPM = """#!/bin/sh
# npm pack NAME@VERSION --silent --pack-destination FOLDER
echo "$2" >> "{log}"
cp "{archive}" "$5/package.tgz" && exit {status}
"""


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """Puts a stand-in for npm on the PATH; returns the package that it serves."""
    archive, log = tmp_path / "served.tgz", tmp_path / "log"
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("package/icons.json")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))

    def serve(status=0):
        script = tmp_path / "bin" / "npm"
        script.parent.mkdir(exist_ok=True)
        script.write_text(NPM.format(archive=archive, log=log, status=status))
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
        return Package("@scope/icons", "1.2.3", hashlib.sha256(archive.read_bytes()).hexdigest())

    serve.log = log
    return serve


def test_fetch_asks_npm_once_for_the_pinned_version(npm, tmp_path):
    wanted = npm()
    folder = fetch(wanted, tmp_path / "cache")
    assert (folder / "icons.json").read_text() == "{}"
    assert fetch(wanted, tmp_path / "cache") == folder
    assert npm.log.read_text().split() == ["@scope/icons@1.2.3"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


@pytest.mark.attack
def test_an_archive_puts_nothing_outside_of_its_folder(tmp_path):
    archive, folder = tmp_path / "a.tgz", tmp_path / "scratch" / "package"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("package/in/a.svg", "../out", "package/../../out", "/out", "other/out", "package/b.svg"):
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"ok"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            link = tarfile.TarInfo(f"package/link{kind.decode()}")
            link.type, link.linkname = kind, str(archive)
            tar.addfile(link)
    _unpack(Package("a", "1", "0" * 64), archive, folder)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir())
    assert files == ["a.tgz", "scratch/package/b.svg", "scratch/package/in/a.svg"]
    assert (folder / "b.svg").read_bytes() == b"ok"


def test_fetch_says_what_went_wrong(npm, tmp_path, monkeypatch):
    wanted = npm()
    other = Package(wanted.name, wanted.version, "0" * 64)
    with pytest.raises(FetchError, match="SHA-256"):
        fetch(other, tmp_path / "cache")
    with pytest.raises(FetchError, match=r"cannot keep @scope/icons"):
        fetch(wanted, npm.log / "below-a-file")
    npm(status=7)
    with pytest.raises(FetchError, match=r"npm pack @scope/icons@1.2.3 failed: npm exited with 7"):
        fetch(wanted, tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match="npm is not on the PATH"):
        fetch(wanted, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if not path.is_dir()]


def test_packages_are_pinned_and_have_a_style():
    assert {package.family for package in FAMILIES} == set(STYLES)
    assert all(len(package.sha256) == 64 and package.version for package in FAMILIES + KEYWORDS)


# The command


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The command with the made-up packages in place of fetched ones."""
    folders, base, lib = unpacked(tmp_path / "packages")
    places = folders | {"emojibase-data": base, "emojilib": lib}
    monkeypatch.setattr(command, "FAMILIES", [p for p in FAMILIES if p.family in places])
    monkeypatch.setattr(command, "fetch", lambda package, cache: places[package.family])


def test_command_writes_the_chosen_names(offline, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("# some\ntropical fish\ncat\n\n")
    arguments = ["--size", "16", "--names", str(tmp_path / "names.txt"), "--workers", "1"]
    assert command.main([str(tmp_path / "out"), *arguments]) == 0
    assert "16: 3 train, 0 heldout" in capsys.readouterr().out
    samples = read_shards(tmp_path / "out" / "16" / "train-000000.tar")
    captions = sorted(sample["caption"] for sample in samples)
    assert captions == ["cat", "tropical fish", "tropical fish"]


def test_command_fails_with_one_line(offline, npm, tmp_path, monkeypatch, capsys):
    def message(*arguments):
        assert command.main([str(argument) for argument in arguments]) == 1
        return capsys.readouterr().err.splitlines()[-1]

    (tmp_path / "names.txt").write_text("unicorn\n")
    (tmp_path / "file").write_text("")
    names = ["--names", tmp_path / "names.txt"]
    assert "no icon is called 'unicorn'" in message(tmp_path / "out", *names)
    assert "cannot read the names" in message(tmp_path / "out", "--names", tmp_path / "none.txt")
    assert "cannot write" in message(tmp_path / "file")
    monkeypatch.setattr(command, "fetch", fetch)
    monkeypatch.setenv("PATH", "")
    assert "npm is not on the PATH" in message(tmp_path / "out", "--cache", tmp_path / "cache")


@pytest.mark.parametrize("wrong", [["--size", "0"], ["--size", "x"], ["--workers", "0"], []])
def test_command_refuses_bad_options(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["out", *wrong] if wrong else [])
    assert stop.value.code == 2 and "error:" in capsys.readouterr().err
