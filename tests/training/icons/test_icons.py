"""training.icons, on packages made up here; no npm and no network."""

import hashlib
import io
from collections import Counter

import pytest
from icon_packages import RED, package, unpacked
from PIL import Image

from training.icons.build import BuildError, build
from training.icons.collect import collect_all, is_held_out
from training.icons.names import STYLES, fxemoji_table, has_skin_tone, plain, slug
from training.icons.render import Drawing, RenderError, encode, render
from unclip.data.reading import expand, read_shards


@pytest.fixture
def packages(tmp_path):
    return unpacked(tmp_path / "packages")


# Names


@pytest.mark.parametrize(
    "label, name",
    {
        "tropical fish": "tropical fish",
        "man’s shoe": "man's shoe",
        "flag: Côte d’Ivoire": "flag of cote d'ivoire",
        "flag: St. Lucia": "flag of st lucia",
        "flag: Cocos (Keeling) Islands": "flag of cocos islands",
        "keycap: #": "keycap hash",
        "regional indicator A": "letter a",
        "Japanese “here” button": "japanese here button",
        "man: red hair": "man with red hair",
        "woman: bald": "bald woman",
        "woman running: facing right": "woman running facing right",
        "family: man, woman, boy": "family of man, woman and boy",
        "couple with heart: woman, man": "woman and man with heart",
        "smiling face with heart-eyes": "smiling face with heart-eyes",
        "UP! button": "up button",
    }.items(),
)
def test_labels_become_plain_words(label, name):
    assert plain(label) == name
    assert slug(name).replace("-", "").isalnum()


def test_skin_tones_are_told_from_other_light_and_dark_things():
    icons = {"boy", "boy-light", "boy-medium-dark", "police-car", "police-car-light"}
    icons |= {"white-small-square", "white-medium-small-square"}
    toned = {icon for icon in icons if has_skin_tone(icon, icons)}
    assert toned == {"boy-light", "boy-medium-dark"}
    assert has_skin_tone("man-medium-skin-tone-beard", set()) and has_skin_tone("elf-tone3", set())


def test_fxemoji_table_is_well_formed():
    table = fxemoji_table()
    names = [name for name in table.values() if name]
    assert len(names) > 400 and None in table.values()
    assert all(name == plain(name) for name in names)
    assert table["catside"] == "cat" and table["cat"] == "cat face"


# Collecting


def test_collect_finds_one_name_for_one_thing_and_no_thing_twice(packages):
    icons = collect_all(*packages)
    names = {family: {i.thing.name for i in icons if i.family == family} for family in STYLES}
    assert names["noto"] == {
        "tropical fish", "dog face", "thumbs up", "backhand index pointing left",
        "backhand index pointing right", "flag of norway", "odd sign", "man's shoe",
    }  # fmt: skip
    assert names["fxemoji"] == {"tropical fish", "cat", "cat face"}  # not the empty notepad
    assert names["twemoji"] == {"dog face"}  # by noto's list of old names
    assert Counter(icon.key for icon in icons).most_common(1)[0][1] == 1
    assert icons == collect_all(*packages)


def test_records_say_what_is_known(packages):
    records = {icon.key: icon.record() for icon in collect_all(*packages)}
    assert records["noto--tropical-fish"] == {
        "name": "tropical fish",
        "category": "animals and nature",
        "subcategory": "",
        "family": "noto",
        "style": "noto",
        "keywords": ["nemo", "swim well", "fish"],
        "icon": "tropical-fish",
        "emoji": "🐠",
    }
    assert records["fxemoji--tropical-fish"]["icon"] == "tropicalfish"
    assert records["noto--odd-sign"]["category"] == "symbols"
    assert records["noto--mans-shoe"]["name"] == "man's shoe"


def test_held_out_is_the_rule_of_the_issue():
    pairs = [("noto", f"thing {number}") for number in range(2000)]
    rule = [int(hashlib.sha256("/".join(p).encode()).hexdigest(), 16) % 20 == 0 for p in pairs]
    assert [is_held_out(*pair) for pair in pairs] == rule
    assert 60 < sum(rule) < 140


# Rendering


def test_rendering_keeps_shape_place_and_transparency():
    image = render(Drawing(RED), 8)
    assert image.mode == "RGBA" and image.size == (8, 8)
    assert image.getpixel((1, 4)) == (255, 0, 0, 255) and image.getpixel((6, 4))[3] == 0
    assert render(Drawing(RED, flipped=True), 8).getpixel((6, 4)) == (255, 0, 0, 255)
    wide = render(Drawing(RED, left=-8, width=32), 8)  # centred, and square all the same
    assert wide.size == (8, 8)
    assert [wide.getpixel((x, 4))[3] for x in (1, 2, 3, 4)] == [0, 255, 255, 0]
    assert wide.getpixel((2, 1))[3] == 0
    again = Image.open(io.BytesIO(encode(image)))
    assert again.format == "WEBP" and again.tobytes() == image.tobytes()


@pytest.mark.parametrize("body", ["", "<path", '<path fill="none" d="M0 0h8"/>'])
def test_what_cannot_be_rendered_is_an_error(body):
    with pytest.raises(RenderError):
        render(Drawing(body), 8)


# Building


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_build_is_deterministic_splits_and_counts(packages, tmp_path):
    icons = collect_all(*packages)
    manifest = build(tmp_path / "one", icons, [16, 24], {"x": "1"}, workers=1, per_shard=4)
    build(tmp_path / "two", icons, [24, 16], {"x": "1"}, workers=2, per_shard=4)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    for size in (16, 24):
        entry = manifest["sizes"][str(size)]
        assert sum(entry["samples"].values()) == len(icons) and not entry["left out"]
        for name, file in entry["files"].items():
            data = (tmp_path / "one" / str(size) / name).read_bytes()
            assert hashlib.sha256(data).hexdigest() == file["sha256"] and len(data) == file["bytes"]
        samples = list(read_shards(expand(tmp_path / "one" / str(size) / "train-*.tar")))
        assert all(sample["image"].size == (size, size) for sample in samples)
        assert not any(is_held_out(s["record"]["family"], s["record"]["name"]) for s in samples)
        assert len(samples) == entry["samples"]["train"]


def test_build_keeps_what_is_there_and_replaces_what_is_not_right(packages, tmp_path):
    icons = collect_all(*packages)
    out = tmp_path / "out"
    build(out, icons, [16], {}, workers=1)
    tar = out / "16" / "train-000000.tar"
    first = contents(out)
    tar.touch()
    stamp = tar.stat().st_mtime_ns
    both = build(out, icons, [24], {}, workers=1)
    assert set(both["sizes"]) == {"16", "24"} and tar.stat().st_mtime_ns == stamp
    tar.write_bytes(b"cut short")
    build(out, icons, [16], {}, workers=1)
    assert tar.read_bytes() == first[tar.relative_to(out)]
    fewer = build(out, icons[:3], [16], {}, workers=1)
    assert set(fewer["sizes"]) == {"16"} and sum(fewer["sizes"]["16"]["samples"].values()) == 3


def test_an_interrupted_build_leaves_no_shards(packages, tmp_path, monkeypatch):
    icons = collect_all(*packages)

    def interrupt(job):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.icons.build._render", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "out", icons, [16], {}, workers=1)
    assert not contents(tmp_path / "out")
    build(tmp_path / "out", icons, [16], {}, workers=1)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"16", "manifest.json"}


def test_a_drawing_that_fails_is_left_out_and_listed(packages, tmp_path):
    folders, *keywords = packages
    package(tmp_path / "bad", {"dog-face": {"body": "<path"}, "cat": {}})
    icons = collect_all(folders | {"noto-v1": tmp_path / "bad"}, *keywords)
    entry = build(tmp_path / "out", icons, [16], {}, workers=1)["sizes"]["16"]
    assert [line.split(":")[0] for line in entry["left out"]] == ["noto-v1/dog-face"]
    assert sum(entry["samples"].values()) == len(icons) - 1


def test_an_unwritable_folder_is_an_error(packages, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="cannot write"):
        build(tmp_path / "file" / "out", collect_all(*packages), [16], {}, workers=1)
