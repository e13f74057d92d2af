"""Captions: articles and number, families of names, and sentences that depend on the seed alone."""

from random import Random

import pytest

from training.icons import captions
from training.icons.nouns import Noun, article, noun

FISH = {
    "name": "tropical fish",
    "category": "animals and nature",
    "family": "fluent-emoji-flat",
    "style": "flat",
    "keywords": ["fish", "ocean", "beach", "U+1F420", "swim_in_the_sea_all_day_long"],
}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("cat", "a cat"),
        ("elephant", "an elephant"),
        ("hourglass done", "an hourglass"),
        ("unicorn", "a unicorn"),
        ("ewe", "a ewe"),
        ("euro banknote", "a euro banknote"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("umbrella", "an umbrella"),
        ("x-ray", "an X-ray"),
        ("t-shirt", "a T-shirt"),
        ("dvd", "a DVD"),
        ("atm sign", "an ATM sign"),
        ("sos button", "an SOS button"),
        ("1st place medal", "a 1st-place medal"),
        ("eight-spoked asterisk", "an eight-spoked asterisk"),
        ("grapes", "grapes"),
        ("scissors", "scissors"),
        ("jeans", "jeans"),
        ("chopsticks", "chopsticks"),
        ("women wrestling", "women wrestling"),
        ("musical notes", "musical notes"),
        ("cactus", "a cactus"),
        ("bus", "a bus"),
        ("dress", "a dress"),
        ("rhinoceros", "a rhinoceros"),
        ("compass", "a compass"),
        ("cooked rice", "cooked rice"),
        ("fire", "fire"),
        ("bread", "bread"),
        ("tennis", "tennis"),
        ("money with wings", "money with wings"),
        ("nest with eggs", "a nest with eggs"),
        ("pot of food", "a pot of food"),
        ("skull and crossbones", "a skull and crossbones"),
        ("cup with straw", "a cup with a straw"),
        ("envelope with arrow", "an envelope with an arrow"),
        ("face with open mouth", "a face with an open mouth"),
        ("grinning face with smiling eyes", "a grinning face with smiling eyes"),
        ("sun", "the sun"),
        ("statue of liberty", "the Statue of Liberty"),
        ("mount fuji", "Mount Fuji"),
        ("santa claus", "Santa Claus"),
        ("japanese castle", "a Japanese castle"),
        ("flag of france", "the flag of France"),
        ("flag-united-states", "the flag of the United States"),
        ("flag of trinidad and tobago", "the flag of Trinidad and Tobago"),
        ("flag of philippines", "the flag of the Philippines"),
        ("flag of st. lucia", "the flag of St. Lucia"),
        ("pirate flag", "a pirate flag"),
        ("flag in hole", "a flag in a hole"),
        ("six o'clock", "a clock at six o'clock"),
        ("one-thirty", "a clock at one thirty"),
        ("letter a", "the letter A"),
        ("aries", "the sign of Aries"),
        ("no smoking", "a no smoking sign"),
        ("woman running", "a woman running"),
        ("man astronaut", "a man astronaut"),
        ("person rowing boat", "a person rowing a boat"),
        ("man: curly hair", "a man with curly hair"),
        ("bald woman", "a bald woman"),
        ("person in manual wheelchair facing right", "a person in a manual wheelchair facing right"),
        ("family of man, woman, girl and boy", "a family of a man, a woman, a girl and a boy"),
        ("family-woman-woman-boy-boy", "a family of two women and two boys"),
        ("kiss of man and man", "a kiss of two men"),
        ("woman and man with heart", "a couple with a heart, a woman and a man"),
        ("tropical-fish", "a tropical fish"),
        ("man's shoe", "a man's shoe"),
    ],
)
def test_articles_and_number(name, expected):
    assert str(noun(name)) == expected


@pytest.mark.parametrize(
    "word, expected",
    [
        ("8 ball", "an"),
        ("2 hearts", "a"),
        ("honest man", "an"),
        ("used car", "a"),
        ("F key", "an"),
        ("U turn", "a"),
    ],
)
def test_article_follows_the_sound(word, expected):
    assert article(word) == expected


def test_described():
    assert str(noun("red apple").described("blue")) == "a blue apple"
    assert str(noun("red apple").described("small")) == "a small red apple"
    assert str(noun("elephant").described("huge")) == "a huge elephant"
    assert str(noun("car").described("orange")) == "an orange car"
    assert str(noun("grapes").described("green")) == "green grapes"
    assert str(noun("sun").described("small")) == "a small sun"
    assert str(Noun("orange", "count").described("green")) == "a green orange"


def test_plain_and_styled():
    assert captions.bare(FISH) == "tropical fish"
    assert captions.plain(FISH) == "a tropical fish"
    assert captions.styled(FISH) == "a tropical fish, flat style"
    assert captions.styled({"name": "fish"}) == "a fish"
    assert captions.style({"name": "fish", "family": "noto-v1"}) == "noto v1"


def test_keywords_are_words_that_the_name_lacks():
    assert captions.keywords(FISH) == ["ocean", "beach"]
    assert captions.keywords({"name": "fish"}) == []


def test_captions_depend_on_the_seed_alone():
    def draw(seed):
        rng = Random(seed)
        return [captions.caption(FISH, rng) for _ in range(300)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_captions_vary_and_stay_true():
    rng = Random(0)
    seen = [captions.caption(FISH, rng) for _ in range(3000)]
    for expected in (
        "a tropical fish",
        "tropical fish",
        "a tropical fish, flat style",
        "tropical fish icon",
        "a picture of a tropical fish",
        "a flat icon of a tropical fish",
        "a tropical fish, ocean",
    ):
        assert expected in seen
    named = [text for text in seen if "tropical fish" in text]
    assert 0.94 < len(named) / len(seen) < 1  # the others are a keyword alone
    assert all("ocean" in text or "beach" in text for text in seen if text not in named)
    assert 0.2 < sum("flat" in text for text in seen) / len(seen) < 0.4
    assert not any("of tropical" in text or "  " in text for text in seen)


def test_compositions():
    rng = Random(3)
    cat, pizza = (captions.phrase(noun(name)) for name in ("cat", "pizza"))
    pairs = {captions.beside(cat, pizza, rng).full for _ in range(200)}
    assert {
        "a cat and a pizza",
        "a cat next to a pizza",
        "a cat to the left of a pizza",
        "a pizza to the right of a cat",
    } <= pairs
    assert "a pizza to the left of a cat" not in pairs
    grounds = {captions.on_background(cat, "orange", rng).full for _ in range(200)}
    assert {"a cat on an orange background", "a cat, orange background"} <= grounds
    assert captions.placed(cat, "at the top", Random(0)).bare in ("cat at the top", "cat, at the top")
    icons = {captions.dress(captions.beside(cat, pizza, rng), rng, "flat") for _ in range(300)}
    assert "cat and pizza icon" not in icons
