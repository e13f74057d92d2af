"""Scenes: pure in the seed, and captions that say what is in the picture."""

import json

import pytest
import torch
from PIL import Image
from places import TRAIN
from shards import encoded

from training.icons import colours, compose, everyday
from training.icons.compose import Layer, Scene
from training.icons.scenes import PLAIN_ONLY, Scenes, ScenesConfig
from training.icons.traits import is_object, mirrorable
from unclip.data.reading import ShardError
from unclip.data.writing import ShardWriter

SIZE = 32
FIELDS = ("plain", "recoloured", "pair", "background", "placed", "everyday")
PAINTS = {"car": (200, 30, 30), "ball": (60, 150, 70), "cup": (50, 90, 210), "kite": (240, 200, 50),
          "hat": (130, 60, 170), "box": (230, 130, 30)}  # fmt: skip


def only(kind, **more):
    return ScenesConfig(**{field: float(field == kind) for field in FIELDS}, **more)


def make(config=None, size=SIZE):
    """Coloured squares with a shaded side and a black mark, in two families."""
    pictures, records = [], []
    for family in ("flat", "shaded"):
        for name, rgb in PAINTS.items():
            rgba = torch.zeros(4, size, size)
            inside = slice(size // 8, size - size // 8)
            rgba[:3, inside, inside] = torch.tensor(rgb)[:, None, None].float()
            rgba[:3, inside, size // 2 : size - size // 8] *= 0.9
            rgba[:3, size // 4 : size // 3, size // 4 : size // 3] = 0
            rgba[3, inside, inside] = 255
            pictures.append(rgba.round().byte())
            records.append(
                {
                    "name": name,
                    "category": "objects",
                    "family": family,
                    "style": family,
                    "keywords": ["thing"],
                    "key": f"{family}--{name}",
                }
            )
    return Scenes(torch.stack(pictures), records, config)


@pytest.fixture(scope="module")
def scenes():
    return make()


@pytest.mark.parametrize("kind", FIELDS)
def test_batches_depend_on_their_arguments_alone(kind):
    one, two = make(only(kind)), make(only(kind))
    one.batch(5, 3)  # what was drawn before must not matter
    a, b, c = one.batch(7, 12), two.batch(7, 12), two.batch(8, 12)
    assert torch.equal(a.image, b.image) and (a.caption, a.key) == (b.caption, b.key)
    assert not torch.equal(a.image, c.image) and a.caption != c.caption
    assert a.image.shape == (12, 3, SIZE, SIZE) and a.image.dtype == torch.float32
    assert a.image.min() >= -1 and a.image.max() <= 1
    assert len(a.caption) == len(a.key) == 12


def test_words_of_everyday_life_show_what_they_mean_in_the_colour_they_mean():
    """A goldfish is a fish, and orange; a word of which no drawing is at hand is never said."""
    pictures = make().rgba[[4, 5, 0, 2]]  # purple, orange, red, blue
    records = [
        {"name": name, "category": "animals", "family": "flat", "style": "flat", "key": f"flat--{k}"}
        for k, name in enumerate(["fish", "tropical fish", "dog", "blossom"])
    ]
    scenes = Scenes(pictures, records, only("everyday"))
    batch, said = scenes.batch(0, 120), set()
    for image, caption, key in zip(batch.image, batch.caption, batch.key, strict=True):
        word = next(word for word in ("goldfish", "golden fish", "puppy", "flower") if word in caption)
        said.add((word, key))
        assert (key == "flat--2") == (word == "puppy")
        rgb = (image[None] + 1) / 2
        names = colours.name_pixels(colours.to_hsv(rgb))[rgb.amin(1) < 0.9]
        most = colours.NAMES[int(names[names >= 2].mode().values)]
        assert most == {"goldfish": "orange", "golden fish": "yellow", "puppy": "red", "flower": "blue"}[word]
    assert len(said) == 6  # and never a daisy, which is white: nothing can be painted so
    none = Scenes(pictures, [{**record, "name": "box"} for record in records], only("everyday"))
    assert all("box" in caption or "flat" in caption for caption in none.batch(0, 8).caption)


def test_the_table_of_everyday_words_is_sound():
    table = everyday.words()
    assert len({word.noun.text for word in table}) == len(table) > 150
    assert {word.colour for word in table} - {None, "white"} <= set(colours.OBJECTS)
    assert all(word.names and all(word.names) for word in table)
    assert not any(word.noun.text in word.names for word in table if len(word.names) == 1)


def test_without_augmentation_pictures_are_left_as_they_are():
    scenes = make(PLAIN_ONLY)
    keys = [record["key"] for record in scenes.records]
    batch = scenes.batch(0, 16)
    torch.testing.assert_close(
        batch.image, scenes.pictures([keys.index(key) for key in batch.key]), atol=1e-5, rtol=0
    )


def test_whole_pixel_moves_and_mirrors_are_exact(scenes):
    box = scenes.traits.box
    middle = tuple(((box[0, :2] + box[0, 2:]) / 2).tolist())
    moved = (middle[0] + 3 / SIZE, middle[1] - 2 / SIZE)
    drawn = draw(scenes, [Layer(0, moved), Layer(0, middle, flip=True)])
    still = scenes.pictures([0])[0]
    torch.testing.assert_close(drawn[0], still.roll((3, -2), (2, 1)), atol=1e-5, rtol=0)
    torch.testing.assert_close(drawn[1], still.flip(2), atol=1e-5, rtol=0)


def draw(scenes, layers, corners=None, side=None):
    return compose.draw(
        [Scene((layer,), "") for layer in layers], scenes.rgba, scenes.traits.box, scenes.traits.typical,
        corners or [(0, 0)] * len(layers), side or scenes.size,
    )  # fmt: skip


def test_shrinking_keeps_the_average(scenes):
    """An antialiased picture at half the size has a quarter of the ink."""
    ink = 1 - scenes.pictures([3])[0]
    small = 1 - draw(scenes, [Layer(3, (0.5, 0.5), 0.5)])[0]
    assert small.sum() == pytest.approx(ink.sum().item() / 4, rel=0.03)


def test_a_crop_is_a_window_of_the_scene(scenes):
    layers = [
        Layer(k, (0.45, 0.55), scale, colour=colour)
        for k, (scale, colour) in enumerate([(1.0, None), (0.3, None), (0.9, "blue"), (1.2, None)])
    ]
    whole = draw(scenes, layers)
    corners = [(0, 0), (9, 4), (24, 24), (3, 20)]
    windows = draw(scenes, layers, corners, 8)
    for window, full, (x, y) in zip(windows, whole, corners, strict=True):
        torch.testing.assert_close(window, full[:, y : y + 8, x : x + 8], atol=1e-4, rtol=0)
    batch = scenes.batch(1, 5, crop=8)
    assert batch.image.shape == (5, 3, 8, 8) and len(batch.caption) == 5


@pytest.mark.parametrize("crop", (-1, SIZE + 1))
def test_a_crop_must_fit(scenes, crop):
    with pytest.raises(ValueError, match="does not fit"):
        scenes.batch(0, 1, crop=crop)


def test_colour_words_agree_with_the_picture():
    scenes = make(only("recoloured"))
    batch = scenes.batch(0, 150)
    seen = set()
    for image, caption in zip(batch.image, batch.caption, strict=True):
        word = next(word for word in colours.OBJECTS if word in caption.split())
        rgb = (image[None] + 1) / 2
        names = colours.name_pixels(colours.to_hsv(rgb))[rgb.amin(1) < 0.95]
        names = names[names != colours.NAMES.index("white")]
        share = (names == colours.NAMES.index(word)).float().mean()
        # the black mark and blended edges are not of the colour
        assert share > 0.6, (caption, share)
        seen.add(word)
    assert len(seen) >= 9


def test_real_icons_take_the_colour_that_they_are_painted_in():
    scenes = Scenes.load(TRAIN)
    traits, names = scenes.traits, list(colours.OBJECTS)
    assert len(traits.paintable) > 20
    layers = [Layer(index, tuple(((traits.box[index, :2] + traits.box[index, 2:]) / 2).tolist()),
                    colour=names[k % len(names)]) for k, index in enumerate(traits.paintable)]  # fmt: skip
    pixels = colours.name_pixels(colours.to_hsv((draw(scenes, layers) + 1) / 2))
    right = 0
    for layer, seen in zip(layers, pixels, strict=True):
        drawn = seen[scenes.rgba[layer.index, 3] > 128]
        right += colours.NAMES[drawn.mode().values] == layer.colour
    assert right / len(layers) > 0.95


def test_pairs_show_the_first_on_the_left():
    scenes = make(only("pair", augment=False, detail=0))
    keys = [record["key"] for record in scenes.records]
    batch = scenes.batch(2, 60)
    pairs = 0
    for image, caption, key in zip(batch.image, batch.caption, batch.key, strict=True):
        if "+" not in key:
            continue
        pairs += 1
        halves = image[..., : SIZE // 2], image[..., SIZE // 2 :]
        for half, part in zip(halves, key.split("+"), strict=True):
            inked = half.mean(0) < 0.9
            expected = torch.tensor(PAINTS[part.split("--")[1]]) / 127.5 - 1
            assert (half[:, inked].median(1).values - expected).abs().max() < 0.35, (caption, key)
            assert part in keys
        left, right = (part.split("--")[1] for part in key.split("+"))
        if "to the left of" in caption or "to the right of" in caption:
            first, last = (left, right) if "left" in caption else (right, left)
            assert caption.index(first) < caption.rindex(last)
        assert left in caption and right in caption
    assert pairs > 40


def test_backgrounds_have_the_named_colour():
    batch = make(only("background", detail=0)).batch(4, 80)
    for image, caption in zip(batch.image, batch.caption, strict=True):
        named = [name for name in colours.BACKGROUNDS if name in caption]
        name = max(named, key=len)  # "light blue" holds "blue"
        corners = (image[:, [0, 0, -1, -1], [0, -1, 0, -1]] + 1) / 2
        expected = torch.tensor(colours.BACKGROUNDS[name])[:, None] / 255
        # a large square may reach one corner
        assert (corners - expected).abs().amax(0).min() < 0.031, caption


def test_places_and_sizes():
    batch = make(only("placed")).batch(6, 120)
    rows = torch.arange(SIZE) + 0.5
    for image, caption in zip(batch.image, batch.caption, strict=True):
        ink = (1 - image).sum(0)
        x = (ink.sum(0) * rows).sum() / ink.sum() / SIZE
        y = (ink.sum(1) * rows).sum() / ink.sum() / SIZE
        for word, good in (("left", x < 0.4), ("right", x > 0.6), ("top", y < 0.4), ("bottom", y > 0.6)):
            assert good or word not in caption, (caption, x, y)
        share = (ink > 0.2).float().mean()
        assert share < 0.25 or not {"tiny", "small", "little"} & set(caption.split())
        assert share > 0.8 or not {"big", "large", "huge"} & set(caption.split())


def test_mixture_follows_the_config():
    scenes = make(ScenesConfig(plain=1, recoloured=0, pair=1, background=0, placed=0))
    pairs = sum("+" in key for key in scenes.batch(0, 400).key)
    assert 130 < pairs < 240


@pytest.mark.parametrize("kind", ["plain", "pair", "background", "placed"])
def test_emphasis_says_how_often_a_drawing_is_chosen(kind):
    """Three to one, and never what has weight 0; of several marks the weights multiply."""
    weights = {"objects": 2.0, "flat": 1.5, "shaded": 0.5}
    drawn = [
        key for names in make(only(kind, emphasis=weights)).batch(0, 600).key for key in names.split("+")
    ]
    flat = sum(key.startswith("flat") for key in drawn) / len(drawn)
    assert 0.69 < flat < 0.81
    never = make(only(kind, emphasis={"flat": 0.0})).batch(0, 200).key
    assert not any(key.startswith("flat") for names in never for key in names.split("+"))
    even = make(only(kind, emphasis={})).batch(3, 9)
    assert even.key == make(only(kind)).batch(3, 9).key


@pytest.mark.parametrize(
    "emphasis, reason",
    [
        ({"pets": 2.0}, "no drawing is of pets.*there are flat, objects, shaded"),
        ({"objects": 0.0}, "leaves no drawing"),
    ],
)
def test_an_emphasis_on_nothing_is_refused(emphasis, reason):
    with pytest.raises(ValueError, match=reason):
        make(ScenesConfig(emphasis=emphasis))
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError):
            ScenesConfig(emphasis={"objects": wrong})


def test_what_may_be_mirrored_and_recoloured():
    assert mirrorable({"name": "cat", "category": "animals and nature"})
    for name, category in (("flag of france", "flags"), ("six o'clock", "travel and places"),
                           ("hand pointing left", "people and body"), ("letter a", "symbols")):  # fmt: skip
        assert not mirrorable({"name": name, "category": category})
    assert is_object({"name": "car", "category": "travel and places"})
    assert not is_object({"name": "grinning face", "category": "smileys and emotion"})
    assert not is_object({"name": "cat face", "category": "animals and nature"})


def test_load_reads_shards_in_order(tmp_path, scenes):
    with ShardWriter(tmp_path, "train", per_shard=5) as writer:
        for rgba, record in zip(scenes.rgba, scenes.records, strict=True):
            image = encoded(Image.fromarray(rgba.permute(1, 2, 0).numpy(), "RGBA"), "WEBP", lossless=True)
            writer.write(
                record["key"],
                {"webp": image, "txt": record["name"].encode(), "json": json.dumps(record).encode()},
            )
    loaded = Scenes.load(tmp_path)
    assert torch.equal(loaded.rgba, scenes.rgba) and loaded.records == scenes.records
    assert len(loaded) == 12 and loaded.size == SIZE
    assert Scenes.load([str(tmp_path / "train-*.tar")], size=16).size == 16
    with pytest.raises(ShardError):
        Scenes.load(tmp_path / "none-*.tar")


def test_bad_arguments(scenes):
    with pytest.raises(ValueError, match="uint8"):
        Scenes(scenes.rgba.float(), scenes.records)
    with pytest.raises(ValueError, match="records"):
        Scenes(scenes.rgba, scenes.records[:1])
