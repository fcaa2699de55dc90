"""How images are decoded: the rules, by number, and what of them a user chooses.

1  versions without this number: class names in the order of texts, pixels converted by Pillow
   (data/folders/first_decoding.py)
2  natural order of class names, layouts, depth, transparency and orientation
   (data/folders/folder.py)

A run keeps the number that it began with. Arrays by other rules lie in another folder.
"""

from typing import NamedTuple

from fewstep.data.folders.image_file import Color, parse_color

FIRST_DECODING, NEWEST_DECODING = 1, 2
BACKGROUND = "white"


class Decoding(NamedTuple):
    """rules: a number of these. background: of transparent pixels. unreadable: files left out."""

    rules: int = NEWEST_DECODING
    background: Color = parse_color(BACKGROUND)
    unreadable: int = 0


NEWEST = Decoding()


def parse_decoding(rules: int = 0, background: str = BACKGROUND, unreadable: int = 0) -> Decoding:
    """The decoding of a config's fields; rules 0 are the newest.

    Raises ValueError for a number that there is not, for no color, and for fields that the first
    rules do not have.
    """
    chosen = Decoding(rules or NEWEST_DECODING, parse_color(background), unreadable)
    if chosen.rules not in (FIRST_DECODING, NEWEST_DECODING):
        raise ValueError(
            f"data.decoding={rules} is none of {FIRST_DECODING} and {NEWEST_DECODING}, or 0 for a "
            "run's own, else the newest"
        )
    if chosen.rules == FIRST_DECODING and chosen[1:] != NEWEST[1:]:
        raise ValueError(
            "data.background and data.unreadable have no part in data.decoding=1, by which this "
            "run reads its images; leave them out, or begin another run"
        )
    return chosen
