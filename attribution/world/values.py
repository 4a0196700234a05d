"""The pools that names and values are drawn from, and the hash that keeps some of them out of training.

It exists so that "held out" is a property of the text itself: any process, with any seed, agrees on whether
a name or a value may appear in training, without a list having to be stored or shared.
"""

import hashlib
import random
from collections.abc import Callable
from enum import StrEnum

HELD_OUT_PERCENT = 15  # of the names, and independently of the values


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAME_STARTS = _words(
    """
    Amber Ash Birch Blue Brass Bright Cedar Cinder Clay Cloud Copper Coral Crown Dusk Elder Ember Fern
    Flint Frost Glass Gold Granite Grey Hazel Iron Ivory Juniper Lark Maple Marble Mist Moss North Oak
    Onyx Pearl Pine Raven Rose Rowan Sable Silver Slate Snow Stone Storm Sun Thorn Tide Willow
    """
)
NAME_ENDS = _words(
    """
    bank beck bell bourne bridge brook cliff combe cote crest dale den fall fell field finch ford gate
    glen grove hall ham haven heath hill holt hurst keep lake land ley marsh mere mill moor mouth peak
    point pool ridge rock shore side spring stead ton vale wall water well wick wood worth yard
    """
)
WHOLE_NAMES = _words(
    """
    Kestrel Osprey Harrier Falcon Merlin Heron Curlew Plover Dunlin Petrel Gannet Puffin Swift Martin
    Wren Linnet Siskin Bunting Fulmar Avocet Altair Vega Rigel Antares Castor Pollux Sirius Mira Deneb
    Spica
    """
)

FIRST_NAMES = _words(
    """
    Ada Alma Anton Asha Bruno Carla Chidi Clara Dario Elena Emil Farid Greta Hana Ivan Jonas Kaito
    Lena Leo Lucia Malik Mara Mei Milan Nadia Nils Noor Olga Omar Paula Pedro Priya Rafael Rosa Samir
    Sofia Tariq Tessa Viktor Yuki
    """
)
LAST_NAMES = _words(
    """
    Abara Adler Bauer Berg Blom Castro Costa Dahl Diaz Dubois Egan Falk Ferrari Fischer Gallo Hahn
    Haas Ibrahim Jansen Kaur Keller Klein Kovac Lang Larsen Lind Lopez Maier Mori Moreau Nagy Nolan
    Novak Okafor Olsen Ortiz Park Patel Petrov Quinn Reyes Rossi Sato Schmidt Silva Singh Stein Tanaka
    Torres Vargas Vogel Weber Wolf Yilmaz
    """
)
DIRECTIONS = _words("north south east west upper lower central outer")
TOWNS = _words(
    """
    Arden Barlow Calder Corwen Dorset Elstow Fairlie Galway Harlow Ilford Jarrow Kelso Lanark Malvern
    Nairn Oban Penrith Quorn Ripon Selby Tarbert Ullapool Ventnor Whitby Yarm
    """
)
COLOURS = _words(
    """
    amber azure beige black bronze coral crimson green indigo jade lilac ochre olive purple red teal
    """
)
ANIMALS = _words(
    """
    badger beaver bison camel crane dingo eagle ferret gecko heron ibex jackal koala lemur lynx marten
    moose newt otter panda quail rabbit salmon tapir turtle viper walrus yak zebra
    """
)
CODE_PREFIXES = _words(
    """
    API AUTH CFG CPU DNS DISK IO KEY LOCK MEM NET PKI QRY RPC SYNC SSL TCP TLS TXN UDP
    """
)


class Split(StrEnum):
    """Whether names and values come from the part of the world that training may see."""

    TRAINING = "training"
    HELD_OUT = "held_out"


def is_held_out(text: str) -> bool:
    """True for the 15 % of names and values that no training sequence contains."""
    return int.from_bytes(hashlib.md5(text.encode()).digest()[:4]) % 100 < HELD_OUT_PERCENT


def all_names() -> list[str]:
    """Every entity name of the world, in a fixed order: `Kestrel`, `Frostridge`, ..."""
    return [*WHOLE_NAMES, *(start + end for start in NAME_STARTS for end in NAME_ENDS)]


def _digits(low: int, high: int, step: int = 1) -> Callable[[random.Random], str]:
    return lambda rng: str(rng.randrange(low, high, step))


def _person(rng: random.Random) -> str:
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


def _place(rng: random.Random) -> str:
    return f"{rng.choice(DIRECTIONS)} {rng.choice(TOWNS)}"


def _channel(rng: random.Random) -> str:
    return f"{rng.choice(COLOURS)}-{rng.choice(ANIMALS)}"


def _clock(rng: random.Random) -> str:
    return f"{rng.randrange(24):02d}:{rng.randrange(0, 60, 5):02d}"


def _code(rng: random.Random) -> str:
    return f"{rng.choice(CODE_PREFIXES)}-{rng.randrange(1010, 9990)}"


def _version(rng: random.Random) -> str:
    return f"{rng.randrange(1, 10)}.{rng.randrange(10, 99)}"


def _milliseconds(rng: random.Random) -> str:
    # Never a round hundred: a timeout that is rounded down must be visibly wrong.
    return f"{rng.randrange(11, 99)}{rng.randrange(10, 100)} ms"


def _with_unit(number: Callable[[random.Random], str], unit: str) -> Callable[[random.Random], str]:
    return lambda rng: f"{number(rng)} {unit}"


DRAWS: dict[str, Callable[[random.Random], str]] = {
    "port": _digits(1100, 9900),
    "owner": _person,
    "timeout": _milliseconds,
    "region": _place,
    "handover time": _clock,
    "error code": _code,
    "rate limit": _with_unit(_digits(110, 990), "requests per second"),
    "alert channel": _channel,
    "retention": _with_unit(_digits(101, 999), "days"),
    "quota": _with_unit(_digits(110, 990), "GB"),
    "backup time": _clock,
    "version": _version,
}


def draw_value(rng: random.Random, attribute: str, split: Split) -> str:
    """A value of the attribute's type from the wanted part of the world."""
    while True:
        value = DRAWS[attribute](rng)
        if is_held_out(f"{attribute}: {value}") == (split == Split.HELD_OUT):
            return value
