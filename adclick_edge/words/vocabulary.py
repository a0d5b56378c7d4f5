"""How the defect kinds of common data sets, and of this package's own products, are put into words."""

from typing import Literal, NamedTuple

__all__ = ["VOCABULARY", "Group", "Wording"]

Group = Literal["structural", "logical"]
"""``structural``: a place looks damaged or soiled. ``logical``: sound parts in the wrong place or number (paper, sec. 3.4)."""


class Wording(NamedTuple):
    """``adjectives`` fit before the part's name and after "is"; ``nouns`` carry their own article."""

    group: Group
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]


def _structural(adjectives: str, nouns: str) -> Wording:
    return Wording("structural", tuple(adjectives.split("; ")), tuple(nouns.split("; ")))


def _logical(adjectives: str, nouns: str) -> Wording:
    return Wording("logical", tuple(adjectives.split("; ")), tuple(nouns.split("; ")))


VOCABULARY: dict[str, Wording] = {
    "anomaly": _structural("defective; faulty", "an anomaly; an unusual spot; a visible defect; an abnormal area"),
    "bent": _structural("bent; crooked", "a bent lead; a bent edge; a crooked pin; a part bent out of shape"),
    "blowhole": _structural("porous; pitted", "a blowhole; a small round cavity; a gas pore; a dark casting pit"),
    "break": _structural("broken; fractured", "a break; a broken-off piece; a fractured edge; a missing chunk"),
    "broken": _structural("broken; shattered", "a broken place; a breakage; a broken piece; a broken-off edge"),
    "broken_large": _structural(
        "badly broken; shattered", "a large break; a big broken-off piece; a large missing chunk; a wide jagged break"
    ),
    "broken_small": _structural(
        "slightly broken; chipped", "a small break; a small broken-off piece; a tiny chip; a small nick in the rim"
    ),
    "broken_thread": _structural(
        "torn; frayed", "a broken thread; a snapped yarn; a gap where a thread is cut; a loose thread end"
    ),
    "bubble": _structural("blistered; bubbly", "a bubble; an air bubble; a blister; a raised round bubble"),
    "burn": _structural("burnt; scorched", "a burn mark; a scorched spot; a burnt area; a brown heat mark"),
    "burr": _structural("burred; rough-edged", "a burr; a raised sharp edge; leftover flash; a ragged metal edge"),
    "chip": _structural("chipped; nicked", "a chip; a chipped edge; a nick; a small flake broken off"),
    "color": _structural(
        "discoloured; wrongly coloured", "a colour defect; a patch of the wrong colour; a coloured stain; paint residue"
    ),
    "contamination": _structural(
        "contaminated; dirty", "contamination; dirt; a fibre or a hair; foreign particles lying on it"
    ),
    "corrosion": _structural(
        "corroded; oxidised", "corrosion; an oxidised patch; a corroded area; a dull eaten surface"
    ),
    "crack": _structural("cracked; fissured", "a crack; a thin dark crack; a jagged fissure; a hairline fracture"),
    "cut": _structural("cut; sliced", "a cut; a straight sharp cut; a slit; a knife mark"),
    "damage": _structural("damaged; worn", "damage; a damaged area; a worn place; mechanical damage"),
    "deformation": _structural("deformed; warped", "a deformation; a warped area; a distorted shape; a bulge"),
    "dent": _structural("dented; bumped", "a dent; a smooth hollow; a shallow impact mark; a pressed-in bowl"),
    "dust": _structural("dusty; speckled", "dust; dust grains; fine specks; a speck of dust"),
    "flip": _logical(
        "flipped; upside down", "the wrong side up; the back side facing up; a reversed part; a turned over part"
    ),
    "fold": _structural("folded; creased", "a fold; a crease; a folded-over edge; a wrinkle"),
    "foreign": _structural(
        "contaminated; covered",
        "a foreign object; foreign material; a patch that does not belong there; a strange object",
    ),
    "fray": _structural("frayed; ragged", "a frayed edge; fraying; a ragged worn edge; loose fibres at the edge"),
    "glue": _structural("sticky; glue-stained", "glue; a glue residue; a shiny drop of adhesive; a glue strip"),
    "hole": _structural("punctured; torn", "a hole; a ragged hole; an opening torn through; a dark puncture"),
    "liquid": _structural("wet; oily", "a liquid spill; an oil spot; a drop of liquid; a wet shiny patch"),
    "misplaced": _logical(
        "misplaced; shifted",
        "a part in the wrong place; a shifted part; a part out of position; a misaligned component",
    ),
    "misprint": _structural(
        "misprinted; badly printed", "a misprint; smeared lettering; missing letters; a doubled, shifted print"
    ),
    "missing": _logical(
        "incomplete; unfinished", "a missing part; a missing component; an empty place; a part left out"
    ),
    "noisy": _structural(
        "corroded; grainy", "a rough grainy patch; a rash of specks; a noisy texture; dust and corrosion"
    ),
    "pit": _structural("pitted; pockmarked", "a pit; small pits; a pitted area; a tiny deep hollow"),
    "poke": _structural("poked; pierced", "a poke mark; a small prick; a pierced point; a small pushed-in point"),
    "print": _structural(
        "wrongly printed; marked", "a stray print; a print mark; wrong letters; ink in the wrong place"
    ),
    "rough": _structural("rough; coarse", "a rough patch; a coarse area; a roughened surface; an abraded place"),
    "rust": _structural("rusty; rusted", "rust; a rust stain; a brown rusty patch; a spot of rust"),
    "scratch": _structural("scratched; scraped", "a scratch; a long thin scratch; scratch marks; a bright scored line"),
    "smear": _structural("smeared; blurred", "a smear; a blurred streak; a wiped mark; a smudge"),
    "snag": _structural("snagged; puckered", "a snag; a pulled thread; a pulled loop; distorted weave"),
    "spot": _structural("spotted; speckled", "a spot; a small round spot; a dark dot; a light speck"),
    "squeeze": _structural("squeezed; squashed", "a squeezed place; a crushed area; a squashed shape; a pinched side"),
    "stain": _structural("stained; blotchy", "a stain; a dark oily stain; a brown blotch; a discoloured patch"),
    "swapped": _logical(
        "wrongly assembled; mixed up",
        "two swapped parts; parts in each other's place; interchanged components; a component of the wrong sort",
    ),
    "tear": _structural("torn; ripped", "a tear; a ripped edge; a rip; a torn place"),
    "thread": _structural("threaded; fibrous", "a loose thread; a thread lying on it; a stray fibre; a hair"),
    "uneven": _structural("uneven; wavy", "an uneven area; uneven grinding; patchy brightness; an irregular surface"),
    "wrinkle": _structural("wrinkled; crumpled", "a wrinkle; wrinkles; a crumpled area; a wavy crease"),
}
"""Wording of each kind, by the kind's folder name."""
