"""Short sentences that name a defect, by product and kind (about 40 each, after the paper's section on prompts)."""

import re

from adclick_edge.words.vocabulary import VOCABULARY, Group, Wording

__all__ = ["group_of", "kind_key", "known_vocabulary", "sentences"]

_BY_ADJECTIVE: dict[Group, tuple[str, ...]] = {
    "structural": (
        "a photo of {a_adjective} {item}",
        "{a_adjective} {item}",
        "this {item} is {adjective}",
        "{a_adjective} area of the {item}",
        "a close-up photo of {a_adjective} {item}",
    ),
    "logical": (
        "a photo of {a_adjective} {item}",
        "this {item} is {adjective}",
        "{a_item} that was {adjective}",
        "the {item} was put together wrongly: {adjective}",
        "an assembly mistake, {adjective} {item}",
    ),
}
_BY_NOUN: dict[Group, tuple[str, ...]] = {
    "structural": (
        "{noun}",
        "{noun} on the {item}",
        "{a_item} with {noun}",
        "a photo of {noun} on {a_item}",
        "a close-up of {noun}",
        "the {item} shows {noun}",
        "a surface defect: {noun}",
    ),
    "logical": (
        "{noun}",
        "{noun} in the {item}",
        "{a_item} with {noun}",
        "a photo of {noun} in {a_item}",
        "the {item} has {noun}",
        "an assembly error: {noun}",
        "the {item} is not as it should be: {noun}",
    ),
}
_PLAIN_ITEM = "part"


def kind_key(name: str) -> str:
    """A kind's or product's name as tables spell it: lower case, words joined by one underscore."""
    return "_".join(re.findall(r"[^\s_\-]+", name.lower()))


def known_vocabulary() -> tuple[str, ...]:
    """Kinds with a wording of their own, sorted."""
    return tuple(sorted(VOCABULARY))


def _wording(kind: str) -> Wording:
    key = kind_key(kind)
    if key in VOCABULARY:
        return VOCABULARY[key]
    words = key.replace("_", " ") or "defect"
    nouns = (words, f"{_a(words)} defect", f"signs of {words}", f"a place with {words}", f"a fault called {words}")
    return Wording(group_of(kind), (), nouns)


def group_of(kind: str) -> Group:
    """``"logical"`` for kinds that are about which part sits where, or whose name holds such a word; else structural."""
    key = kind_key(kind)
    logical = {name for name, wording in VOCABULARY.items() if wording.group == "logical"} | {"swap", "wrong", "mixed"}
    if key in VOCABULARY:
        return VOCABULARY[key].group
    return "logical" if logical & set(key.split("_")) else "structural"


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def sentences(kind: str, product: str | None = None) -> tuple[str, ...]:
    """About 40 different sentences for a kind of defect, always the same ones, in the same order.

    ``kind`` and ``product`` are names as folders have them (``broken_small``, ``metal_nut``); without a product the
    sentences speak of "a part". A kind without a wording of its own goes by its name.
    """
    item = kind_key(product or "").replace("_", " ") or _PLAIN_ITEM
    wording = _wording(kind)
    name = kind_key(kind).replace("_", " ") or "defect"
    made = [name, f"{name} {item}" if wording.group == "logical" else f"{item} {name}"]
    fill = {"item": item, "a_item": _a(item)}
    for adjective in wording.adjectives:
        made += [t.format(adjective=adjective, a_adjective=_a(adjective), **fill) for t in _BY_ADJECTIVE[wording.group]]
    for noun in wording.nouns:
        made += [t.format(noun=noun, **fill) for t in _BY_NOUN[wording.group]]
    return tuple(dict.fromkeys(made))
