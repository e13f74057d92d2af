"""From an icon's name to an English noun phrase: "grapes", "an hourglass", "the sun"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

Kind = Literal["count", "plural", "mass", "the", "proper"]


@dataclass(frozen=True)
class Noun:
    """A noun phrase without its article, and the kind of noun that decides the article.

    ``count`` takes a or an, ``the`` takes the, and ``plural``, ``mass`` and ``proper`` take none.
    """

    text: str
    kind: Kind

    def __str__(self) -> str:
        if self.kind == "count":
            return f"{article(self.text)} {self.text}"
        return f"the {self.text}" if self.kind == "the" else self.text

    def described(self, adjective: str) -> Noun:
        """With an adjective before it: "a small fish"; a colour replaces one in the name."""
        text = without_colour(self.text) if adjective in COLOUR_WORDS else self.text
        return Noun(f"{adjective} {text}", "count" if self.kind == "the" else self.kind)


@cache
def article(text: str) -> str:
    """``a`` or ``an``, by the sound that ``text`` begins with."""
    first = text.split()[0] if text.split() else ""
    if re.match(r"(8|11|18)", first):
        return "an"
    if len(first) == 1 or first.isupper() and first in SPELLED:
        return "an" if first[:1].upper() in "AEFHILMNORSX8" else "a"
    if re.match(r"x-|t-", first, re.I):
        return "an" if first[0] in "xX" else "a"
    word = first.lower()
    if re.match(r"(hour|hono|heir|honest)", word):
        return "an"
    if re.match(r"(uni([^nm]|m[^p])|eu|ewe|one\b|one-|once|us[eu]|ufo|uku|ut[ie])", word):
        return "a"
    return "an" if word[:1] in "aeiou" else "a"


def without_colour(text: str) -> str:
    """``red apple`` -> ``apple``; a name that is nothing but colours is left as it is."""
    words = [word for word in text.split() if word not in COLOUR_WORDS and word != "light"]
    return " ".join(words) or text


@cache
def noun(name: str) -> Noun:
    """The noun phrase of an icon called ``name`` (words joined by spaces, or all by hyphens)."""
    name = re.sub(r"[\s_:]+", " ", name.strip().lower())
    slug = re.sub(r"[^a-z0-9]+", "-", name.replace("'", ""))
    if slug in SPECIAL:
        kind, _, text = SPECIAL[slug].partition(" ")
        return Noun(text, kind)
    for rule in (_flag, _clock, _letter, _sign, _family):
        if exception := rule(slug):
            return exception
    text = _readable(name if " " in name else name.replace("-", " "))
    return Noun(text, _kind(text))


def _flag(slug: str) -> Noun | None:
    match = re.fullmatch(r"flag-(?:for-|of-)?(?!in-)(.+)", slug)
    if not match:
        return None
    country = COUNTRIES.get(match[1])
    if country is None:
        small = ("and", "of", "the", "da")
        country = " ".join(w if w in small else w.capitalize() for w in match[1].split("-"))
        country = re.sub(r"\bSt\b", "St.", country)
        if re.match(r"United|.*(Islands|Republic|Territor|Netherlands|Union)", country):
            country = f"the {country}"
    return Noun(f"flag of {country}", "the")


def _clock(slug: str) -> Noun | None:
    match = re.fullmatch(rf"({HOURS})-(oclock|thirty)", slug)
    if not match:
        return None
    minutes = "thirty" if match[2] == "thirty" else "o'clock"
    return Noun(f"clock at {match[1]} {minutes}", "count")


def _letter(slug: str) -> Noun | None:
    if match := re.fullmatch(r"(?:letter|regional-indicator)-([a-z])", slug):
        return Noun(f"letter {match[1].upper()}", "the")
    match = re.fullmatch(r"([a-z]|ab|cl|id|ng|ok|sos|vs|atm)-(button|sign)(-blood-type)?", slug)
    return Noun(f"{match[1].upper()} {match[2]}", "count") if match else None


def _sign(slug: str) -> Noun | None:
    if slug in SIGNS or slug.startswith("no-"):
        return Noun(f"{slug.replace('-', ' ')} sign", "count")
    return Noun(f"sign of {slug.capitalize()}", "the") if slug in ZODIAC else None


def _family(slug: str) -> Noun | None:
    heads = {"family": "family of", "kiss": "kiss of", "couple-with-heart": "couple with a heart,"}
    slug = re.sub(r"^((?:man|woman)-and-(?:man|woman))-with-heart$", r"couple-with-heart-\1", slug)
    match = re.match(rf"({'|'.join(heads)})-(of-)?(?=man|woman|adult|child|person)", slug)
    if not match:
        return None
    people = re.findall(r"woman|man|boy|girl|child|adult|person", slug[match.end() :])
    many = {"man": "men", "woman": "women", "child": "children", "person": "people"}
    parts = [
        f"two {many.get(who, who + 's')}" if people.count(who) > 1 else str(Noun(who, "count"))
        for who in dict.fromkeys(people)
    ]
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)
    return Noun(f"{heads[match[1]]} {listed}", "count")


def _readable(name: str) -> str:
    text = " ".join(PROPER.get(word, word) for word in name.split())
    for pattern, replacement in REPAIRS:
        text = re.sub(pattern, replacement, text)
    return text


def _kind(text: str) -> Kind:
    words = re.split(r"[\s,]+", text)
    head = words[0]
    for word, following in zip(words, [*words[1:], ""], strict=True):
        head = word
        acting = word in ACTORS and following.endswith("ing")
        if following in BOUNDARIES or acting:
            break
    head = head.lower()
    if head in PLURALS:
        return "plural"
    if head in MASS:
        return "mass"
    ends_like_plural = head.endswith("s") and not head.endswith(("ss", "us", "is", "'s"))
    return "plural" if ends_like_plural and head not in SINGULAR_IN_S else "count"


COLOUR_WORDS = frozenset(
    "red orange yellow green blue purple pink brown black white gray grey turquoise golden".split()
)
HOURS = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
SPELLED = frozenset("AB CL ID NG SOS VS ATM DVD DNA TV UFO".split())
ACTORS = frozenset("man woman person men women people boy girl child baby face head".split())
BOUNDARIES = frozenset(
    "with of in on at and without behind over under from to for facing showing holding fluttering "
    "pointing above below beside going".split()
)
PLURALS = frozenset("people men women children scissors dice mice feet teeth geese skis palms".split())
SINGULAR_IN_S = frozenset(
    "lens gas atlas christmas canvas asterisk series trellis aries rhinoceros cosmos".split()
)
MASS = frozenset(
    "rice fire bread butter salt ice sushi popcorn spaghetti garlic broccoli bacon fog wood coral "
    "yarn thread sake custard fondue oden flatbread dna construction luggage tennis badminton "
    "lacrosse hockey softball pong soap money meat lightning honey corn polish food falafel dango "
    "mate racing fencing golf archery surfing swimming camping litter traffic confetti poo water "
    "candy bowling scenery karate judo taekwondo hair wheat milk jewelry smoke steam".split()
)
PROPER = {
    word.lower(): word
    for word in (
        "Japanese Hindu Shinto Christmas American Americas Asia Australia Europe Africa Fuji Tokyo "
        "Liberty French Santa Claus Japan DNA DVD ATM ID OK SOS David Chinese Latin Kaaba Om "
        "Shibuya Buddhist Easter NG VS Vulcan Celtic Ferris Morse".split()
    )
} | {
    "mrs": "Mrs.", "mx": "Mx", "mans": "man's", "womans": "woman's", "mens": "men's",
    "womens": "women's", "oclock": "o'clock", "grey": "gray", "blonde": "blond",
}  # fmt: skip
_WITH_ARTICLE = (
    "veil|turban|crown|skullcap|headscarf|tuxedo|white cane|manual wheelchair|motorized wheelchair|"
    "steamy room|suit|hearing aid|halo|monocle|medical mask|head bandage|thermometer|tear|hole|"
    "raised eyebrow|open mouth|diagonal mouth|cloud|large cloud|small cloud|rain cloud|garden|"
    "flash|pen|key|ribbon|arrow|bone|umbrella|ballot|face|handle|straw|spoon|plate|swirl|"
    "popping cork|slash|lowered flag|raised flag|decorative cover|curl|dot|heart|mouth|check|"
    "wry smile|yen|cowboy hat|beard|speech bubble|lotus position|peeking eye"
)
# Applied in this order to the words joined by spaces.
REPAIRS = (
    (rf"\b(with|in|on|behind|wearing|without) "
     rf"(?=(?:{_WITH_ARTICLE})(?: (?:of )?facing right| levitating)?$)", r"\1 a "),
    (r"\bof facing right$", "facing right"),
    (r"\ba (?=open|arrow|umbrella)", "an "), (r"\bin wind$", "in the wind"),
    (r"\b(rowing|bouncing|feeding|raising|tipping|getting|taking) (?=(boat|ball|baby|hand|haircut|"
     r"massage|bath)$)", r"\1 a "),
    (r"\b(from|on|over) a? ?(?=(nose|mouth)$)", r"\1 the "),
    (r"\bwith hand over\b", "with a hand over"), (r"\bwith tongue$", "with its tongue out"),
    (r"^(man|woman|person) (blond|red|white|curly) hair$", r"\1 with \2 hair"),
    (r"^(man|woman|person) beard$", r"\1 with a beard"),
    (r"^(man|woman|person) (bald|deaf)$", r"\2 \1"),
    (r"^t[ -]shirt", "T-shirt"), (r"^t[ -]rex", "T-Rex"), (r"^x[ -]ray$", "X-ray"),
    (r"^e mail$", "e-mail"), (r"^yo yo$", "yo-yo"), (r"^jack o lantern$", "jack-o'-lantern"),
    (r"^(1st|2nd|3rd) place", r"\1-place"), (r"^(two|one) (hump|piece)", r"\1-\2"),
    (r"\b(high|six|eight|four) (heeled|pointed|spoked|leaf|speed)\b", r"\1-\2"),
    (r"\b(tear|upside|rolled|snow) (off|down|up|capped)\b", r"\1-\2"),
    (r"^backhand index", "hand with an index finger"),
    (r"^index pointing", "index finger pointing"),
    (r"Europe[- ]Africa$", "Europe and Africa"), (r"Asia[- ]Australia$", "Asia and Australia"),
    (r"showing Americas$", "showing the Americas"), (r"\bthumb sign\b", "thumb"),
    (r"^speaker (\w+) volume$", r"speaker at \1 volume"), (r"\bnon potable\b", "non-potable"),
)  # fmt: skip
ZODIAC = frozenset(
    "aries taurus gemini cancer leo virgo libra scorpio sagittarius capricorn aquarius pisces "
    "ophiuchus".split()
)
SIGNS = frozenset(
    "plus minus information prohibited warning radioactive biohazard copyright registered infinity "
    " customs cinema wireless baggage-claim left-luggage passport-control restroom "
    "high-voltage currency-exchange children-crossing vibration-mode mobile-phone-off".split()
)
# slug -> kind of noun, then its text
SPECIAL = {
    "sun": "the sun", "milky-way": "the Milky Way", "kaaba": "the Kaaba",
    "statue-of-liberty": "the Statue of Liberty", "om": "the Om symbol", "zzz": "proper zzz",
    "mount-fuji": "proper Mount Fuji", "tokyo-tower": "proper Tokyo Tower",
    "santa-claus": "proper Santa Claus", "mrs-claus": "proper Mrs. Claus",
    "mx-claus": "proper Mx Claus", "map-of-japan": "count map of Japan",
    "thumbs-up": "count thumbs up", "thumbs-down": "count thumbs down",
    "star-struck": "count star-struck face", "hundred-points": "count hundred points",
    "rolling-on-the-floor-laughing": "count face rolling on the floor laughing",
    "hear-no-evil-monkey": "count hear-no-evil monkey", "dizzy": "plural dizzy stars",
    "see-no-evil-monkey": "count see-no-evil monkey", "pool-8-ball": "count billiard ball",
    "speak-no-evil-monkey": "count speak-no-evil monkey", "multiply": "count multiplication sign",
    "womans-clothes": "plural women's clothes", "trade-mark": "count trademark sign",
    "fleur-de-lis": "count fleur-de-lis",
    "woman-and-man-holding-hands": "plural woman and man holding hands",
    "no-one-under-eighteen": "count no one under eighteen sign", "divide": "count division sign",
    "umbrella-on-ground": "count umbrella on the ground", "cooking": "count frying pan with an egg",
    "shibuya-109-department-store": "count department store", "on-arrow": "count on arrow",
    "building-construction": "count building under construction", "circled-m": "count circled M",
    "construction": "count construction barrier", "dashing-away": "count puff of air",
    "mahjong-red-dragon": "count red dragon mahjong tile", "foggy": "count foggy bridge",
    "breast-feeding": "count woman breast-feeding", "leafy-green": "count leafy green vegetable",
    "locked": "count closed padlock", "unlocked": "count open padlock", "face-in-clouds":
    "count face in the clouds", "locked-with-key": "count padlock with a key",
    "locked-with-pen": "count padlock with a pen", "palms-up-together": "plural palms up together",
    "litter-in-bin-sign": "count litter in bin sign", "raised-back-of-hand":
    "count raised back of a hand", "input-latin-uppercase": "plural uppercase Latin letters",
    "input-latin-lowercase": "plural lowercase Latin letters", "hourglass-done": "count hourglass",
    "hourglass-not-done": "count hourglass with flowing sand", "fork-and-knife-with-plate":
    "count plate with a fork and knife", "chart-increasing": "count rising chart",
    "chart-decreasing": "count falling chart", "chart-increasing-with-yen":
    "count rising chart with a yen sign", "love-you-gesture": "count love-you gesture",
    "high-speed-train": "count high-speed train", "money-mouth-face": "count money-mouth face",
    "headphone": "plural headphones", "heavy-equals-sign": "count equals sign",
    "pouring-liquid": "count glass pouring liquid", "mate": "mass mate",
    "eye-in-speech-bubble": "count eye in a speech bubble",
}  # fmt: skip
COUNTRIES = {
    "hong-kong-sar-china": "Hong Kong", "macao-sar-china": "Macao", "turkiye": "Turkey",
    "cote-divoire": "the Ivory Coast", "myanmar-burma": "Myanmar", "bahamas": "the Bahamas",
    "gambia": "the Gambia", "maldives": "the Maldives", "philippines": "the Philippines",
    "seychelles": "the Seychelles", "comoros": "the Comoros", "isle-of-man": "the Isle of Man",
    "congo-brazzaville": "the Republic of the Congo", "guinea-bissau": "Guinea-Bissau",
    "congo-kinshasa": "the Democratic Republic of the Congo", "timor-leste": "East Timor",
    "us-virgin-islands": "the US Virgin Islands", "us-outlying-islands": "the US Outlying Islands",
    "cocos-keeling-islands": "the Cocos Islands", "vatican-city": "the Vatican",
    "heard-and-mcdonald-islands": "Heard and McDonald Islands",
    "south-georgia-and-south-sandwich-islands": "South Georgia and the South Sandwich Islands",
}  # fmt: skip
