import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_samples import MINILM_SHA256, HashEncoder

from adclick_edge.data.sample_line import PRODUCTS
from adclick_edge.errors import BundleError, UsageError
from adclick_edge.words import PromptTable, known_vocabulary, sentences, shipped_prompts
from adclick_edge.words.table import MAX_TABLE_BYTES

ENCODER = HashEncoder()
TABLE = PromptTable.build(ENCODER, ["scratch", "stain"], {"flange": ["stain", "odd_one"], "board": ["odd_one", "bent"]})
# float16 keeps 11 bits.
ROUNDED = 1e-3


def mean(kind: str, product: str | None = None) -> np.ndarray:
    vector = ENCODER.encode(list(sentences(kind, product))).mean(axis=0)
    return vector / np.linalg.norm(vector)


def changed(**changes: Any) -> bytes:
    return json.dumps(json.loads(TABLE.encode()) | changes).encode()


def entry(vectors: np.ndarray, texts: list[str]) -> dict[str, Any]:
    data = base64.b64encode(vectors.astype("<f2").tobytes()).decode()
    return {"averaged": 1, "sentences": texts, "vectors": data}


def test_the_products_own_kind_comes_first_then_the_general_then_that_of_others() -> None:
    np.testing.assert_allclose(TABLE.vector("flange", "stain"), mean("stain", "flange"), atol=1e-6)
    np.testing.assert_allclose(TABLE.vector("board", "stain"), mean("stain"), atol=1e-6)
    np.testing.assert_allclose(TABLE.vector(None, "stain"), mean("stain"), atol=1e-6)
    np.testing.assert_allclose(TABLE.vector("flange", "bent"), mean("bent", "board"), atol=1e-6)
    both = mean("odd_one", "board") + mean("odd_one", "flange")
    np.testing.assert_allclose(TABLE.vector("lid", "odd_one"), both / np.linalg.norm(both), atol=1e-6)


def test_names_are_compared_without_regard_to_spelling() -> None:
    np.testing.assert_array_equal(TABLE.vector("Flange", " Odd-One "), TABLE.vector("flange", "odd_one"))


def test_free_text_goes_through_the_encoder_and_a_new_name_through_its_sentences() -> None:
    text = "a deep  gouge\nbeside the bore"
    expected = ENCODER.encode(["a deep gouge beside the bore"])[0]
    np.testing.assert_allclose(TABLE.vector("flange", text, ENCODER), expected, atol=1e-6)
    np.testing.assert_allclose(TABLE.vector("flange", "gouge", ENCODER), mean("gouge", "flange"), atol=1e-6)


def test_a_known_kind_never_asks_the_encoder() -> None:
    np.testing.assert_array_equal(TABLE.vector(None, "stain", HashEncoder(salt="other")), TABLE.vector(None, "stain"))


def test_without_an_encoder_the_error_names_the_kinds_and_the_way_to_one() -> None:
    with pytest.raises(UsageError) as caught:
        TABLE.vector("flange", "a deep gouge")
    for part in ("'a deep gouge'", "bent, odd_one, scratch, stain", "adclick-edge[words]", "adclick words export"):
        assert part in str(caught.value)


def test_an_encoder_with_other_weights_is_refused() -> None:
    with pytest.raises(UsageError, match="is not the one the prompts were made with: hash"):
        TABLE.vector("flange", "a deep gouge", HashEncoder(salt="other"))


@pytest.mark.parametrize("text", ["", " \n", "x" * 401])
def test_empty_and_endless_prompts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="give 1 to 400"):
        TABLE.vector(None, text, ENCODER)


def test_known_kinds_and_products() -> None:
    assert TABLE.known_kinds() == ("bent", "odd_one", "scratch", "stain")
    assert TABLE.known_kinds("flange") == ("odd_one", "stain")
    assert TABLE.known_kinds("lid") == ()
    assert TABLE.known_products() == ("board", "flange")


def test_examples_begin_with_the_vector_and_vary() -> None:
    rows = TABLE.examples("flange", "stain")
    assert rows.shape == (5, 16)
    np.testing.assert_array_equal(rows[0], TABLE.vector("flange", "stain"))
    singles = ENCODER.encode(list(sentences("stain")))
    for row in rows[2:]:
        assert np.abs(singles - row).max(axis=1).min() < 1e-6
    assert TABLE.examples("board", "bent").shape == (1, 16)
    with pytest.raises(UsageError, match="no known kind"):
        TABLE.examples(None, "gouge")


def test_a_vector_is_the_callers_own() -> None:
    TABLE.vector(None, "stain")[:] = 0
    np.testing.assert_allclose(np.linalg.norm(TABLE.vector(None, "stain")), 1, atol=1e-6)


def test_written_and_read_again(tmp_path: Path) -> None:
    TABLE.write(tmp_path / "prompts.json")
    again = PromptTable.read(tmp_path / "prompts.json")
    assert (again.encoder_name, again.encoder_sha256, again.dims) == ("hash", ENCODER.sha256, 16)
    assert again.known_kinds() == TABLE.known_kinds()
    assert again.known_products() == TABLE.known_products()
    for product in (None, "flange", "board"):
        for kind in TABLE.known_kinds():
            found = again.vector(product, kind)
            assert found.dtype == np.float32
            assert found.shape == (16,)
            np.testing.assert_allclose(np.linalg.norm(found), 1, atol=1e-6)
            np.testing.assert_allclose(found, TABLE.vector(product, kind), atol=ROUNDED)
    assert (tmp_path / "prompts.json").read_bytes() == TABLE.encode()


KINDS = st.text("abcdefghij_- AB", min_size=1, max_size=12).filter(lambda name: name.strip(" _-"))


@given(st.sets(KINDS, max_size=5), st.dictionaries(KINDS, st.sets(KINDS, max_size=3), max_size=3), st.integers(4, 64))
@settings(deadline=None, max_examples=30)
def test_any_names_survive_the_file(kinds: set[str], products: dict[str, set[str]], dims: int) -> None:
    table = PromptTable.build(HashEncoder(dims), sorted(kinds), products, examples=1)
    again = PromptTable.decode(table.encode())
    assert again.known_kinds() == table.known_kinds()
    assert set(again.known_kinds()) >= {"_".join(k.lower().replace("-", " ").replace("_", " ").split()) for k in kinds}
    for kind in again.known_kinds():
        np.testing.assert_allclose(again.vector(None, kind), table.vector(None, kind), atol=ROUNDED)


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_damaged_file_is_refused_or_still_whole(data: st.DataObject) -> None:
    """Whatever byte is lost, what is read has unit vectors or is a BundleError."""
    good = TABLE.encode()
    place = data.draw(st.integers(0, len(good) - 1))
    bad = good[:place] + data.draw(st.binary(max_size=2)) + good[place + 1 :]
    try:
        table = PromptTable.decode(bad)
    except BundleError:
        return
    for kind in table.known_kinds():
        np.testing.assert_allclose(np.linalg.norm(table.vector(None, kind)), 1, atol=1e-5)


UNIT = np.eye(16)[:1]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"not json", "not a table of prompts"),
        (b"\xff\xfe", "not a table of prompts"),
        (changed(schema=2), "of schema 2, this version reads 1"),
        (changed(more=1), "unknown field"),
        (changed(dims=0), "dims"),
        (changed(dims=17), "bytes, not the"),
        (changed(encoder={"name": "x", "sha256": "beef"}), "sha256"),
        (changed(kinds={"Stain": entry(UNIT, [])}), "not in lower case"),
        (changed(products={"A b": {}}), "not in lower case"),
        (changed(kinds={"stain": entry(UNIT, ["a"])}), "are 32 bytes, not the 64 of 2 rows"),
        (changed(kinds={"stain": entry(2 * UNIT, [])}), "unit length"),
        (changed(kinds={"stain": entry(np.nan * UNIT, [])}), "unit length"),
        (changed(products={"lid": {"stain": entry(0 * UNIT, [])}}), "lid/stain are not of unit length"),
        (changed(kinds={"stain": entry(UNIT, []) | {"vectors": "%%"}}), "are not base64"),
        (changed(kinds={"stain": entry(UNIT, []) | {"averaged": 0}}), "averaged"),
        (b" " * (MAX_TABLE_BYTES + 1), "larger than"),
    ],
)
def test_bad_files_are_refused(data: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_bytes(data)
    with pytest.raises(BundleError, match=match) as caught:
        PromptTable.read(path)
    assert str(path) in str(caught.value)
    assert "adclick words vectors" in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No such file"):
        PromptTable.read(tmp_path / "prompts.json")


def test_the_shipped_table_knows_all_common_kinds() -> None:
    table = shipped_prompts()
    assert (table.encoder_name, table.encoder_sha256, table.dims) == ("all-MiniLM-L6-v2", MINILM_SHA256, 384)
    assert table.known_kinds() == known_vocabulary()
    assert {product: set(table.known_kinds(product)) for product in table.known_products()} == {
        product: set(kinds) for product, kinds in PRODUCTS.items()
    }
    assert len(table.encode()) < 250_000


def test_the_shipped_table_is_made_of_the_sentences_of_today() -> None:
    """It must be made again whenever the templates change."""
    table = json.loads(shipped_prompts().encode())
    entries = [(kind, None, entry) for kind, entry in table["kinds"].items()]
    entries += [(kind, name, entry) for name, own in table["products"].items() for kind, entry in own.items()]
    for kind, product, entry in entries:
        made = sentences(kind, product)
        assert entry["averaged"] == len(made)
        assert set(entry["sentences"]) <= set(made)


def test_shipped_vectors_keep_kinds_apart() -> None:
    table = shipped_prompts()
    vectors = np.stack([table.vector(None, kind) for kind in table.known_kinds()])
    alike = vectors @ vectors.T - 2 * np.eye(len(vectors))
    assert alike.max() < 0.98
    for near, nearer, far in (
        ("tear", "broken", "liquid"),
        ("blowhole", "pit", "fold"),
        ("swapped", "misplaced", "rust"),
    ):
        assert table.vector(None, near) @ table.vector(None, nearer) > table.vector(None, near) @ table.vector(
            None, far
        )
    for product, kinds in PRODUCTS.items():
        for kind in kinds:
            own = table.vector(product, kind)
            nearest = max(PRODUCTS[product], key=lambda other, own=own: float(own @ table.vector(None, other)))
            assert nearest == kind, (product, kind)
