"""Do two units agree, and how large is a unit? The spellings are those of units.py."""
from __future__ import annotations

from common.verify.units import known_unit
from common.verify.words import COMPARISONS, MEASURES

_CURRENCIES = frozenset({"dollar", "euro", "pound-sterling", "yen", "yuan", "rupee", "cent"})
# one line for a dimension: units and their sizes
_SIZES = {unit: (dimension, float(size)) for dimension, units in {
    "time": "sec 1 ms .001 min 60 hr 3600 day 86400 wk 604800",
    "length": "m 1 cm .01 mm .001 km 1000 in .0254 ft .3048 yd .9144 mi 1609.344",
    "mass": "g 1 mg .001 kg 1000 t 1000000", "volume": "l 1 ml .001", "money": "dollar 1 cent .01",
    "angle": "rad 1 deg .017453292519943295", "": "% .01"}.items() for unit, size in [*zip(*[iter(units.split())] * 2, strict=True)]}


def units_agree(x: str, y: str) -> bool:
    """Whether two units may be the same. A unit may be left out; so may the hour of a wage and the colour of a marble."""
    if x == y or not x or not y:
        return True
    if comments := (set(x.split()) ^ set(y.split())) & (MEASURES | COMPARISONS):
        are_opposed = len(comments & COMPARISONS) > 1 or comments & {"more", "fewer", "less"}
        x, y = (" ".join(word for word in unit.split() if word not in comments) for unit in (x, y))
        return not (are_opposed and x and y) and units_agree(x, y)
    if "pound" in (x, y):  # of weight, or of money
        return {x, y} <= {"pound", "lb", "pound-sterling"}
    words_x, words_y = set(x.split()), set(y.split())
    if words_x & words_y & _CURRENCIES:  # $18 and $18 per hour
        return words_x <= words_y or words_y <= words_x
    are_things = not any(known_unit(word.partition("^")[0]) for word in words_x | words_y)
    return are_things and (words_x <= words_y or words_y <= words_x)


def size_of_unit(unit: str) -> tuple[tuple[tuple[str, int], ...], float] | None:
    """The dimensions of a unit in one spelling and its size: ((("length", 1), ("time", -1)), 0.2777...) for km/h. None for others."""
    powers: dict[str, int] = {}
    size = 1.0
    for factor in unit.split():
        name, _, power = factor.partition("^")
        if name not in _SIZES:
            return None
        dimension, size_of_one = _SIZES[name]
        powers[dimension] = powers.get(dimension, 0) + int(power or 1)
        size *= size_of_one ** int(power or 1)
    return tuple(sorted((dimension, power) for dimension, power in powers.items() if dimension and power)), size
