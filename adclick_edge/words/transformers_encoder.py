"""Text encoders of the transformers library, from a folder: all-MiniLM-L6-v2, BERT and its kin, CLIP's text half."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from adclick_edge.errors import UsageError, WeightsError
from adclick_edge.files import sha256_file
from adclick_edge.words.encoder import F32

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["MAX_TOKENS", "TransformersEncoder"]

MAX_TOKENS = 64
"""Sentences are cut after so many tokens, fewer where the model takes fewer."""

_BATCH = 64
_NAME_BY_WEIGHTS = {"53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db": "all-MiniLM-L6-v2"}


class _Config(msgspec.Struct, frozen=True):
    model_type: str
    max_position_embeddings: int | None = None
    text_config: dict[str, Any] | None = None


class _Pooling(msgspec.Struct, frozen=True):
    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = True


class TransformersEncoder:
    """Mean over tokens (or the class token, where ``1_Pooling/config.json`` says so); CLIP's own projection for CLIP.

    Needs torch and transformers. Raises WeightsError for a folder without ``model.safetensors`` or with files the
    library cannot read, and UsageError where the libraries are missing.
    """

    def __init__(self, folder: Path) -> None:
        weights = folder / "model.safetensors"
        for path in (folder / "config.json", weights):
            if not path.is_file():
                raise WeightsError(
                    f"{folder}: no {path.name}; give a model's folder in transformers' layout, weights as safetensors "
                    "in one file"
                )
        try:
            self._config = msgspec.json.decode((folder / "config.json").read_bytes(), type=_Config)
            pooling = folder / "1_Pooling" / "config.json"
            chosen = msgspec.json.decode(pooling.read_bytes(), type=_Pooling) if pooling.is_file() else _Pooling()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WeightsError(f"{folder}: its configuration cannot be read: {error}; copy the model again") from error
        if chosen.pooling_mode_cls_token == chosen.pooling_mode_mean_tokens:
            raise WeightsError(f"{folder}: 1_Pooling asks for neither mean nor class token alone; use another model")
        self.sha256 = sha256_file(weights)
        self._by_class_token = chosen.pooling_mode_cls_token
        self._folder = folder
        try:
            self.module, self._tokenizer = self._load()
        except ImportError as error:
            raise UsageError(
                f"{folder}: reading this model needs {error.name or error}; pip install torch transformers, or use an "
                "ONNX copy of it made by 'adclick words export'"
            ) from error
        except Exception as error:  # the library raises whatever it comes across
            raise WeightsError(f"{folder}: transformers cannot read it: {type(error).__name__}: {error}") from error
        probe = self.encode(["part"])
        self.dims = int(probe.shape[1])

    @property
    def name(self) -> str:
        return _NAME_BY_WEIGHTS.get(self.sha256, self._folder.resolve().name)

    @property
    def pad_id(self) -> int:
        return int(self._tokenizer.pad_token_id or 0)

    @cached_property
    def max_tokens(self) -> int:
        own = self._config.max_position_embeddings
        if own is None and self._config.text_config is not None:
            own = self._config.text_config.get("max_position_embeddings")
        return min(MAX_TOKENS, own or MAX_TOKENS)

    @property
    def backend_tokenizer(self) -> Any:
        """The ``tokenizers.Tokenizer`` behind, for an ONNX copy."""
        return self._tokenizer.backend_tokenizer

    def tokens(self, sentences: list[str]) -> "tuple[Tensor, Tensor]":
        """Token ids and mask, int64 ``[n, t]`` each, padded to the longest sentence."""
        found = self._tokenizer(
            sentences, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return found["input_ids"], found["attention_mask"]

    def encode(self, sentences: list[str]) -> F32:
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(sentences), _BATCH):
                parts.append(self.module(*self.tokens(sentences[start : start + _BATCH])).numpy())
        return np.concatenate(parts).astype(np.float32) if parts else np.zeros((0, self.dims), np.float32)

    def _load(self) -> "tuple[nn.Module, Any]":
        import torch
        import transformers
        from torch import Tensor, nn
        from torch.nn import functional

        # Attention spelt out in plain operators: the fused form does not go to ONNX everywhere.
        how: Any = {"local_files_only": True, "use_safetensors": True, "attn_implementation": "eager"}
        how |= {"trust_remote_code": False, "dtype": torch.float32}
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        folder = str(self._folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError("it has no tokenizer.json, and none can be made from what is there")
        clip = self._config.model_type in ("clip", "clip_text_model")
        family = transformers.CLIPTextModelWithProjection if clip else transformers.AutoModel
        by_class_token = self._by_class_token

        class Pooled(nn.Module):
            """ids, mask int64 [n, t] -> unit vectors float32 [n, dims]."""

            def __init__(self) -> None:
                super().__init__()
                self.model = family.from_pretrained(folder, **how)

            def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
                found = self.model(input_ids=ids, attention_mask=mask)
                if clip:
                    vectors = found.text_embeds
                elif by_class_token:
                    vectors = found.last_hidden_state[:, 0]
                else:
                    weight = mask[:, :, None].to(torch.float32)
                    vectors = (found.last_hidden_state * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
                return functional.normalize(vectors, dim=1)

        return Pooled().eval(), tokenizer
