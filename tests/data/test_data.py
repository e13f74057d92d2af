"""Pictures and shards, on the real icons in tests/data and on broken ones."""

import itertools
import json
import shutil
import tarfile
from collections import Counter

import pytest
import torch
from PIL import Image
from places import DATA, HELDOUT, ROOT, TRAIN
from shards import encoded

from unclip.data.images import grid, save_png, to_pil, to_tensor
from unclip.data.reading import ShardError, expand, read_shards
from unclip.data.writing import ShardWriter


def picture(colour="red", size=(4, 4), kind="PNG", mode="RGB"):
    return encoded(Image.new(mode, size, colour), kind)


def write(folder, count=5, prefix="train", per_shard=2):
    with ShardWriter(folder, prefix, per_shard) as writer:
        for index in range(count):
            record = json.dumps({"number": index}).encode()
            writer.write(f"a-{index}", {"png": picture(), "txt": b"a square", "json": record})
    return writer.paths


def keys(*args, **kw):
    return [sample["key"] for sample in read_shards(*args, **kw)]


# The test shards


def test_the_test_shards_hold_complete_groups_of_real_pictures():
    samples = list(read_shards([TRAIN, HELDOUT]))
    names = [line for line in (DATA / "names.txt").read_text().splitlines() if line[0] != "#"]
    families = Counter(sample["record"]["family"] for sample in samples)
    assert Counter(sample["record"]["name"] for sample in samples) == dict.fromkeys(names, 6)
    assert set(families.values()) == {len(names)} and len(families) == 6
    for sample in samples:
        image, record = sample["image"], sample["record"]
        assert image.mode == "RGBA" and image.size == (64, 64)
        assert image.getextrema()[3] == (0, 255)  # something is drawn, on nothing
        assert sample["caption"] == record["name"]
        assert sample["key"] == f"{record['family']}--{record['name'].replace(' ', '-')}"
        assert record["keywords"] and record["category"] and record["style"]


def test_the_test_shards_are_small_and_say_whose_they_are():
    assert TRAIN.stat().st_size + HELDOUT.stat().st_size < 2e6
    notice = (ROOT / "NOTICE").read_text()
    for family in {sample["record"]["family"] for sample in read_shards(DATA)}:
        assert f"`{family}--`" in (DATA / "README.md").read_text()
        assert f"@iconify-json/{family} " in notice


# Writing


def test_the_same_samples_give_the_same_bytes(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert [path.name for path in first] == [f"train-{n:06d}.tar" for n in range(3)]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    with tarfile.open(first[0]) as tar:
        assert {(m.mtime, m.uid, m.gid) for m in tar.getmembers()} == {(0, 0, 0)}


def test_an_error_leaves_whole_shards_and_nothing_else(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, "train", per_shard=2) as writer:
        for index in range(3):
            writer.write(f"{index}", {"png": picture(), "txt": b""})
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["train-000000.tar"]
    with pytest.raises(ValueError, match="per_shard"):
        ShardWriter(tmp_path, "train", per_shard=0)


# Reading


def test_samples_come_back_as_they_were_written(tmp_path):
    write(tmp_path)
    samples = list(read_shards(tmp_path))
    assert [sample["key"] for sample in samples] == [f"a-{index}" for index in range(5)]
    assert [sample["record"]["number"] for sample in samples] == list(range(5))
    assert {sample["image"].mode for sample in samples} == {"RGB"}
    assert {sample["caption"] for sample in samples} == {"a square"}


def test_shuffling_is_a_permutation_given_by_the_seed():
    straight = keys(TRAIN)
    shuffled = keys(TRAIN, shuffle=100, seed=1)
    assert sorted(shuffled) == sorted(straight) and shuffled != straight
    assert shuffled == keys(TRAIN, shuffle=100, seed=1)
    assert shuffled != keys(TRAIN, shuffle=100, seed=2)


def test_epochs_differ_and_may_be_endless(tmp_path):
    write(tmp_path, count=20)
    two = keys(tmp_path, shuffle=20, epochs=2)
    assert len(two) == 40 and sorted(two[:20]) == sorted(two[20:]) and two[:20] != two[20:]
    endless = read_shards(tmp_path, shuffle=20, epochs=None)
    assert [sample["key"] for sample in itertools.islice(endless, 40)] == two


def test_what_cannot_be_read_is_skipped_and_counted(tmp_path, capsys):
    good = {"png": picture(), "txt": b"good"}
    with ShardWriter(tmp_path, "train") as writer:
        writer.write("no-picture", {"txt": b"?"})
        writer.write("no-caption", {"png": picture()})
        writer.write("cut-short", {"png": picture(size=(64, 64))[:60], "txt": b"?"})
        writer.write("no-image", {"png": b"not a picture", "txt": b"?"})
        writer.write("no-json", {**good, "json": b"{"})
        writer.write("no-object", {**good, "json": b"[]"})
        writer.write("no-text", {**good, "txt": b"\xff"})
        writer.write("good", good)
    skipped = Counter()
    assert keys(tmp_path, skipped=skipped) == ["good"]
    assert skipped.total() == 7
    assert "skipped 7 of 8 samples" in capsys.readouterr().err


def test_a_damaged_shard_costs_only_itself(tmp_path):
    cut = tmp_path / "a.tar"
    cut.write_bytes(TRAIN.read_bytes()[:50_000])
    (tmp_path / "b.tar").write_bytes(b"no tar at all")
    shutil.copy(HELDOUT, tmp_path / "c.tar")
    skipped = Counter()
    read = keys(tmp_path, skipped=skipped)
    assert set(keys(HELDOUT)) < set(read)
    assert skipped.total() == 3  # two shards, and the sample that the cut went through


def test_shards_without_a_sample_are_an_error(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar at all")
    with pytest.raises(ShardError, match="no sample"):
        next(read_shards(tmp_path, epochs=None))


def test_expand_takes_paths_globs_ranges_and_folders(tmp_path):
    paths = [str(path) for path in write(tmp_path)]
    assert expand(tmp_path) == expand(f"{tmp_path}/train-*.tar") == paths
    assert expand(f"{tmp_path}/train-{{000000..000002}}.tar") == paths
    assert expand([paths[2], paths[0]]) == [paths[2], paths[0]]
    assert expand("pipe:cat x.tar") == ["pipe:cat x.tar"]
    for missing in (tmp_path / "none.tar", f"{tmp_path}/none-*.tar", []):
        with pytest.raises(ShardError, match="no shards"):
            expand(missing)


# Pictures


def test_eight_bits_survive_the_way_to_a_tensor_and_back():
    levels = torch.arange(256, dtype=torch.uint8).reshape(16, 16).numpy()
    image = Image.merge("RGB", [Image.fromarray(levels)] * 3)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 16, 16) and tensor.min() == -1 and tensor.max() == 1
    assert to_pil(tensor).tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK"])
def test_any_mode_becomes_rgb(mode):
    tensor = to_tensor(Image.new("RGB", (3, 2), "white").convert(mode))
    assert tensor.shape == (3, 2, 3) and bool((tensor == 1).all())


def test_what_is_transparent_shows_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    red, white = to_tensor(image)[:, 0].T
    assert red.tolist() == [1, -1, -1] and white.tolist() == [1, 1, 1]


def test_to_pil_clamps_and_wants_one_picture():
    assert to_pil(torch.tensor([9.0, -9.0, 0.0]).reshape(3, 1, 1)).getpixel((0, 0)) == (255, 0, 128)
    with pytest.raises(ValueError, match="3,H,W"):
        to_pil(torch.zeros(1, 3, 4, 4))


def test_grid_sets_pictures_row_by_row():
    images = torch.linspace(-1, 1, 5).reshape(5, 1, 1, 1).expand(5, 3, 4, 6)
    sheet = grid(images, columns=3, gap=1)
    assert sheet.size == (3 * 7 - 1, 2 * 5 - 1)
    corners = [sheet.getpixel((7 * column, 5 * row))[0] for row in (0, 1) for column in (0, 1, 2)]
    assert corners == [0, 64, 128, 191, 255, 255]
    assert sheet.getpixel((6, 0)) == (255, 255, 255)
    assert grid(images[:4]).size == (6 * 2 + 2, 4 * 2 + 2)
    for wrong in (images[0], images[:0]):
        with pytest.raises(ValueError):
            grid(wrong)


def test_save_png_makes_folders_and_no_half_file(tmp_path):
    path = tmp_path / "new" / "a.png"
    image = Image.new("RGB", (2, 2), "red")
    save_png(image, path)
    before = path.read_bytes()

    class Broken:
        info: dict = {}

        def save(self, file, kind, **_):
            file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_png(Broken(), path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    with pytest.raises(OSError):
        save_png(image, path / "below-a-file.png")
