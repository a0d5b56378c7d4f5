import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.data.procedural.defects import DEFECTS
from adclick_edge.data.sample_line import PRODUCTS
from adclick_edge.words.templates import group_of, kind_key, known_vocabulary, sentences
from adclick_edge.words.vocabulary import VOCABULARY

NAMES = st.text(st.characters(codec="utf-8"), max_size=30)


def test_the_kinds_of_all_made_up_products_have_words_of_their_own() -> None:
    made = {kind for kinds in PRODUCTS.values() for kind in kinds} | set(DEFECTS)
    assert made <= set(known_vocabulary())
    assert len(known_vocabulary()) >= 45
    assert all(kind_key(kind) == kind for kind in VOCABULARY)


@pytest.mark.parametrize("kind", known_vocabulary())
def test_about_forty_different_short_sentences_of_each_kind(kind: str) -> None:
    made = sentences(kind, "metal_nut")
    assert 38 <= len(made) == len(set(made)) <= 42
    assert max(len(text.split()) for text in made) <= 16
    # What a kind is called by its nouns stands alone, too: text that names no part.
    assert sum("metal nut" in text for text in made) >= 20
    assert not any("_" in text or "{" in text or "  " in text for text in made)


def test_sentences_say_kind_and_product() -> None:
    assert "a photo of a scratched metal nut" in sentences("scratch", "metal_nut")
    assert "a close-up photo of an uneven part" in sentences("uneven")
    assert "an ic with a missing part" in sentences("missing", "IC")
    assert "the gear box has two swapped parts" in sentences("swapped", "Gear-Box")


def test_wording_differs_between_the_two_groups() -> None:
    assert {kind for kind in VOCABULARY if group_of(kind) == "logical"} == {"flip", "misplaced", "missing", "swapped"}
    assert any("assembly error" in text for text in sentences("missing"))
    assert not any("assembly error" in text for text in sentences("stain"))
    assert not any("surface" in text for text in sentences("swapped"))


def test_a_kind_without_words_goes_by_its_name() -> None:
    made = sentences("molten_corner", "lid")
    assert "a photo of a molten corner defect on a lid" in made
    assert len(made) >= 30
    assert all("molten corner" in text for text in made)
    assert group_of("missing_wire") == group_of("cable_swap") == "logical"
    assert group_of("missingness") == "structural"


def test_no_two_kinds_share_their_sentences() -> None:
    for one in VOCABULARY:
        for other in VOCABULARY:
            if one < other:
                shared = set(sentences(one)) & set(sentences(other))
                assert len(shared) <= len(sentences(one)) / 2, (one, other)


@given(kind=NAMES, product=st.none() | NAMES)
@settings(deadline=None, max_examples=100)
def test_any_folder_name_gives_the_same_sentences_again(kind: str, product: str | None) -> None:
    made = sentences(kind, product)
    assert made == sentences(kind, product)
    assert len(made) == len(set(made)) >= 20
    assert all(text == " ".join(text.split()) and text for text in made)


@given(NAMES)
@settings(deadline=None, max_examples=100)
def test_a_key_is_its_own_key(name: str) -> None:
    assert kind_key(kind_key(name)) == kind_key(name)
    assert not set(kind_key(name)) & set(" -\t\n")


def test_spelling_of_names_does_not_matter() -> None:
    assert kind_key(" Broken-Large ") == kind_key("broken large") == "broken_large"
    assert sentences("Broken Large") == sentences("broken_large")
