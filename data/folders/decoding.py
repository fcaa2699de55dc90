"""Decoding of image files: numbered rules, and the choices of the user.

1  the rules of versions before this number: class names in string order, pixels converted by Pillow
   (data/folders/first_decoding.py)
2  natural order of class names; layouts, depth, transparency and orientation are understood
   (data/folders/folder.py)

A run keeps the rules that it started with. Arrays decoded by other rules lie in another folder.
"""

from typing import NamedTuple

from fewstep.data.folders.image_file import Color, parse_color

FIRST_DECODING, NEWEST_DECODING = 1, 2
BACKGROUND = "white"


class Decoding(NamedTuple):
    """How image files are decoded.

    rules: 1 or 2, see above. background: RGB behind transparent pixels. unreadable: how many
    unreadable files may be left out.
    """

    rules: int = NEWEST_DECODING
    background: Color = parse_color(BACKGROUND)
    unreadable: int = 0


NEWEST = Decoding()


def parse_decoding(rules: int = 0, background: str = BACKGROUND, unreadable: int = 0) -> Decoding:
    """The decoding that a config's fields ask for; rules 0 are the newest.

    Raises ValueError for unknown rules or colors, and for choices that the first rules lack.
    """
    chosen = Decoding(rules or NEWEST_DECODING, parse_color(background), unreadable)
    if chosen.rules not in (FIRST_DECODING, NEWEST_DECODING):
        raise ValueError(
            f"data.decoding={rules} must be {FIRST_DECODING} or {NEWEST_DECODING}, or 0 for the "
            "run's own rules, else the newest"
        )
    if chosen.rules == FIRST_DECODING and chosen[1:] != NEWEST[1:]:
        raise ValueError(
            "data.background and data.unreadable have no effect with data.decoding=1, which this "
            "run uses; leave them out, or start another run"
        )
    return chosen
