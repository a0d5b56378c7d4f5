"""The two text encoders, on all-MiniLM-L6-v2 where it is installed."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Adclick
from prompt_samples import MINILM_SHA256, NO_MINILM, minilm_folder

from adclick_edge.errors import UsageError, WeightsError
from adclick_edge.words import TextEncoder, open_encoder, sentences, shipped_prompts

MODEL = minilm_folder()
needs_minilm = pytest.mark.skipif(MODEL is None, reason=NO_MINILM)
WITHOUT_TORCH = "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'onnx']));"
PROBES = [*sentences("scratch")[:12], "x", "Öl auf der Dichtfläche", " ".join(["a stain on the long edge"] * 40)]


@pytest.fixture(scope="module")
def original() -> TextEncoder:
    assert MODEL is not None
    return open_encoder(MODEL)


@pytest.fixture(scope="session")
def copy_folder(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """An ONNX copy of all-MiniLM-L6-v2."""
    from adclick_edge.words.onnx_export import export_encoder

    assert MODEL is not None
    return make_once("words_copy", lambda root: export_encoder(MODEL, root))


@pytest.fixture
def altered_copy(copy_folder: Path, tmp_path: Path) -> Path:
    """A copy of the copy to damage; the large file is a link."""
    for name in ("words.json", "tokenizer.json"):
        shutil.copy(copy_folder / name, tmp_path)
    (tmp_path / "model.onnx").hardlink_to(copy_folder / "model.onnx")
    return tmp_path


@needs_minilm
def test_the_copy_says_what_the_original_says(original: TextEncoder, copy_folder: Path) -> None:
    copied = open_encoder(copy_folder)
    assert type(copied) is not type(original)
    assert (copied.name, copied.sha256, copied.dims) == ("all-MiniLM-L6-v2", MINILM_SHA256, 384)
    assert (original.name, original.sha256, original.dims) == ("all-MiniLM-L6-v2", MINILM_SHA256, 384)
    found = [encoder.encode(PROBES) for encoder in (copied, original)]
    assert all(vectors.dtype == np.float32 and vectors.shape == (len(PROBES), 384) for vectors in found)
    assert np.abs(found[0] - found[1]).max() < 1e-4
    assert np.abs(np.linalg.norm(found[0], axis=1) - 1).max() < 1e-5


@needs_minilm
@pytest.mark.parametrize("copied", [False, True])
def test_a_sentence_does_not_depend_on_its_neighbours(original: TextEncoder, copied: bool, copy_folder: Path) -> None:
    encoder = open_encoder(copy_folder) if copied else original
    together = encoder.encode(PROBES)
    alone = np.concatenate([encoder.encode([text]) for text in PROBES])
    assert np.abs(together - alone).max() < 1e-5
    many = encoder.encode(["a dent", *["a scratch on a part"] * 70])
    assert many.shape == (71, 384)
    assert np.abs(many[1:] - many[1]).max() < 1e-5
    assert encoder.encode([]).shape == (0, 384)


@needs_minilm
@pytest.mark.parametrize(
    ("text", "like", "unlike"),
    [
        ("a scratched metal nut", "a photo of a metal nut with scratches", "a bottle with dirt in it"),
        ("a hole in the cloth", "a torn fabric", "a bent pin of a chip"),
        ("a component is missing", "the board lacks a part", "an oily stain on steel"),
    ],
)
def test_like_sentences_lie_nearer_than_unlike_ones(original: TextEncoder, text: str, like: str, unlike: str) -> None:
    one, near, far = original.encode([text, like, unlike])
    assert one @ near > one @ far + 0.1


@needs_minilm
def test_the_shipped_vectors_are_this_encoders(original: TextEncoder) -> None:
    table = shipped_prompts()
    for product, kind in ((None, "crack"), ("flange", "swapped"), (None, "blowhole")):
        made = original.encode(list(sentences(kind, product))).mean(axis=0)
        assert table.vector(product, kind) @ made / np.linalg.norm(made) > 0.99999
    table.check_encoder(original)
    free = table.vector(None, "a rusty hole right through the sheet", original)
    kinds = sorted(table.known_kinds(), key=lambda kind: -float(free @ table.vector(None, kind)))
    assert {"hole", "rust"} <= set(kinds[:5])


@needs_minilm
def test_free_text_needs_no_torch(copy_folder: Path, original: TextEncoder) -> None:
    code = f"""{WITHOUT_TORCH}
import json
from pathlib import Path
from adclick_edge.words import open_encoder, shipped_prompts
print(json.dumps(shipped_prompts().vector("flange", "a deep gouge", open_encoder(Path(sys.argv[1]))).tolist()))
"""
    done = subprocess.run([sys.executable, "-c", code, str(copy_folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.asarray(json.loads(done.stdout), np.float32)
    assert np.abs(found - shipped_prompts().vector("flange", "a deep gouge", original)).max() < 1e-4


@needs_minilm
@pytest.mark.parametrize("missing", ["tokenizers", "onnxruntime"])
def test_a_missing_library_is_named(missing: str, copy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError, match=rf"needs {missing}.*pip install 'adclick-edge\[words\]'"):
        open_encoder(copy_folder)


@needs_minilm
@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_the_original_without_its_libraries_points_to_the_copy(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MODEL is not None
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError, match=rf"needs {missing}.*adclick words export"):
        open_encoder(MODEL)


@needs_minilm
def test_an_altered_file_is_refused(altered_copy: Path) -> None:
    tokenizer = altered_copy / "tokenizer.json"
    data = tokenizer.read_bytes()
    tokenizer.write_bytes(data[:-2] + b"x" + data[-1:])
    with pytest.raises(WeightsError, match=r"tokenizer\.json does not fit the hash"):
        open_encoder(altered_copy)
    tokenizer.unlink()
    with pytest.raises(WeightsError, match=r"tokenizer\.json is missing"):
        open_encoder(altered_copy)


@needs_minilm
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"schema": 2}, "of schema 2"),
        ({"dims": -1}, "dims"),
        ({"more": 1}, "unknown field"),
        ({"files": {}}, "names"),
        ({"source_sha256": "x"}, "source_sha256"),
    ],
)
def test_an_altered_description_is_refused(altered_copy: Path, change: dict[str, object], match: str) -> None:
    path = altered_copy / "words.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsError, match=match):
        open_encoder(altered_copy)


@pytest.mark.parametrize("data", [b"{}", b"\xff", b" " * 70_000])
def test_a_foreign_description_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "words.json").write_bytes(data)
    with pytest.raises(WeightsError, match=r"words\.json"):
        open_encoder(tmp_path)


def test_folders_that_hold_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no text encoder"):
        open_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match=r"no model\.safetensors"):
        open_encoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": false}')
    with pytest.raises(WeightsError, match="1_Pooling"):
        open_encoder(tmp_path)
    for data in (b"{}", b'{"model_type": "\xff"}'):
        (tmp_path / "config.json").write_bytes(data)
        with pytest.raises(WeightsError, match="configuration"):
            open_encoder(tmp_path)


@needs_minilm
def test_weights_that_are_none(tmp_path: Path) -> None:
    assert MODEL is not None
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="transformers cannot read it"):
        open_encoder(tmp_path)


@pytest.mark.parametrize("verb", ["vectors", "export"])
def test_verbs_on_a_folder_without_a_model(verb: str, adclick: Adclick, tmp_path: Path) -> None:
    ran = adclick("words", verb, "--model", tmp_path, "--out", tmp_path / "out")
    assert ran.code == 1
    assert str(tmp_path) in ran.err.replace("\n", "")
    assert not (tmp_path / "out").exists()
