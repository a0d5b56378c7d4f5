"""Models of other families than MiniLM, tiny and with random weights: BERT with a class token, CLIP's text half."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Adclick

from adclick_edge.words import PromptTable, open_encoder

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: run make test")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: run make test")
torch = pytest.importorskip("torch")

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "part",
    "with",
    "scratch",
    "on",
    "the",
    "deep",
    "photo",
    "of",
    "crack",
]
TEXTS = ["a part", "a photo of a deep scratch on the part", "crack " * 90]
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_tokenizer(folder: Path) -> None:
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: k for k, w in enumerate(WORDS)}, unk_token="[UNK]"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    plain.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **names).save_pretrained(folder)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=40, **TINY)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    save_tokenizer(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    text: dict[str, Any] = {**TINY, "vocab_size": len(WORDS), "max_position_embeddings": 20, "projection_dim": 24}
    tokens = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text, **tokens))
    model.save_pretrained(tmp_path / "clip")
    save_tokenizer(tmp_path / "clip")
    return tmp_path / "clip"


def tokens_of(encoder: Any, text: str) -> Any:
    ids, mask = encoder.tokens([text])
    return {"input_ids": ids, "attention_mask": mask}


def unit(vectors: Any) -> np.ndarray:
    found = vectors.detach().numpy()
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def test_bert_by_mean_and_by_class_token(bert: Path) -> None:
    by_mean = open_encoder(bert)
    model = transformers.BertModel.from_pretrained(bert).eval()
    for text in TEXTS:
        hidden = model(**tokens_of(by_mean, text)).last_hidden_state
        assert hidden.shape[1] <= 40
        np.testing.assert_allclose(by_mean.encode([text]), unit(hidden.mean(1)), atol=1e-5)
    (bert / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (bert / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    by_class = open_encoder(bert)
    for text in TEXTS:
        hidden = model(**tokens_of(by_class, text)).last_hidden_state
        np.testing.assert_allclose(by_class.encode([text]), unit(hidden[:, 0]), atol=1e-5)
    assert by_mean.name == "bert"
    assert by_mean.dims == 32


def test_clip_and_its_copy(clip: Path, adclick: Adclick, tmp_path: Path) -> None:
    original = open_encoder(clip)
    assert original.dims == 24
    model = transformers.CLIPTextModelWithProjection.from_pretrained(clip).eval()
    for text in TEXTS:
        expected = unit(model(**tokens_of(original, text)).text_embeds)
        np.testing.assert_allclose(original.encode([text]), expected, atol=1e-5)
    report = adclick("words", "export", "--model", clip, "--out", tmp_path / "copy", "--json").json
    assert report["max_difference"] <= 1e-4
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["model.onnx", "tokenizer.json", "words.json"]
    copied = open_encoder(tmp_path / "copy")
    assert (copied.sha256, copied.dims) == (original.sha256, 24)
    assert np.abs(copied.encode(TEXTS) - original.encode(TEXTS)).max() < 1e-4
    table = PromptTable.build(original, ["scratch"])
    assert table.vector(None, "a deep crack", copied).shape == (24,)


def test_a_copy_that_differs_is_not_written(
    bert: Path, adclick: Adclick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adclick_edge.words.onnx_encoder import OnnxEncoder

    honest: Callable[[Any, list[str]], np.ndarray] = OnnxEncoder.encode
    monkeypatch.setattr(OnnxEncoder, "encode", lambda self, texts: honest(self, texts) + np.float32(2e-4))
    ran = adclick("words", "export", "--model", bert, "--out", tmp_path / "copy")
    assert ran.code == 1
    assert "differs from the original" in ran.said
    assert not (tmp_path / "copy").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"bert"}


def test_vectors_of_a_data_set(bert: Path, line: Path, adclick: Adclick, tmp_path: Path) -> None:
    (line_copy := tmp_path / "data" / "lid" / "test" / "dull_edge").mkdir(parents=True)
    for folder in ("train/good", "test/good"):
        (tmp_path / "data" / "lid" / folder).mkdir(parents=True)
    source = next((line / "flange" / "test" / "good").iterdir())
    for folder in (line_copy, tmp_path / "data/lid/train/good", tmp_path / "data/lid/test/good"):
        (folder / "000.png").write_bytes(source.read_bytes())
    out = tmp_path / "prompts.json"
    body = adclick("words", "vectors", "--model", bert, "--data", tmp_path / "data", "--out", out, "--json").json
    assert body["products"] == ["board", "fabric", "flange", "lid"]
    assert (body["encoder"], body["dims"]) == ("bert", 32)
    table = PromptTable.read(out)
    assert table.known_kinds("lid") == ("dull_edge",)
    assert "dull_edge" in table.known_kinds()
