"""Clicks and words to a mask, on one frame at a time (method section 2). No training library is needed.

Each click is answered from all clicks so far and the answer before it, so answers form a chain; `ClickSession.undo` takes
the last link off, and what is left is what was there before.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from adclick_edge.bundle import Bundle, read_bundle
from adclick_edge.bundle.names import BANK, CALIBRATION, PROMPTS
from adclick_edge.data.clicks import Click
from adclick_edge.errors import BundleError, EngineError, UsageError
from adclick_edge.features.bank import Bank
from adclick_edge.runtime.click_encoder import MIRRORS, Mirror, ViewEncoder
from adclick_edge.runtime.click_encoder import mirrored as mirrored_maps
from adclick_edge.runtime.click_golden import check_click_golden
from adclick_edge.runtime.click_view import (
    View,
    click_rows,
    marked_box,
    next_view,
    paste,
    resize_map,
    to_probability,
    whole_view,
)
from adclick_edge.runtime.engine import ClickEngine
from adclick_edge.runtime.inspector import Inspector
from adclick_edge.runtime.ort_cpu import OrtCpuEngine

if TYPE_CHECKING:
    from adclick_edge.words import PromptTable, TextEncoder

__all__ = ["ClickSession"]

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Answer:
    view: View
    logits: F32
    """Of the view, at half the network's size."""


class ClickSession:
    """``set_image``, then ``click`` until the mask is right.

    Args:
        bundle: With the graphs of clicks; one of weights alone works without residuals. It is left open.
        engine: Loaded from ``bundle``.
        zoom: Look closer at a small region from click ``zoom_after`` + 1 on; the answer outside of the closer view
            stays as it was. For frames much larger than the network's view; up to 1000 x 1000 it did not pay
            (docs/performance.md).
        mirrored: Answer from the frame and its three mirrorings, the mean of their logits: better masks for four times
            the work. For labels, where nobody waits.
        text_encoder: For free text as a prompt; known kinds need none.
        check_golden: Compare the golden click case of the bundle, where it has one.

    Raises BundleError for a bundle without the graphs of clicks, or one that computes something else on this machine.
    """

    name = "adclick"

    def __init__(
        self,
        bundle: Bundle,
        engine: ClickEngine,
        *,
        zoom: bool = False,
        zoom_after: int = 1,
        mirrored: bool = False,
        text_encoder: "TextEncoder | None" = None,
        check_golden: bool = True,
    ) -> None:
        spec = bundle.manifest.click
        if spec is None:
            raise BundleError(
                f"{bundle.location}: has no graphs for clicks, only those of inspection; export a run of "
                "`adclick train clicks`, or make the product with --weights of a bundle that has them"
            )
        self.bundle = bundle
        self._spec = spec
        self._engine = engine
        self._zoom = zoom
        self._zoom_after = zoom_after
        self._text_encoder = text_encoder
        # Where the graph takes any number of rows, none is spent on clicks that were not given.
        self._free_rows = any(tensor.name == "clicks" and tensor.shape[1] == -1 for tensor in spec.decode_inputs)
        self._table: PromptTable | None = None
        self._prompt: F32 = np.zeros(spec.prompt_dims, np.float32)
        self._closes_bundle = False
        bank = None
        if BANK in bundle.manifest.files:
            bank = engine.load_bank(Bank.from_bytes(bundle.read(BANK), name=f"{bundle.location}: {BANK}"))
        self._encoder = ViewEncoder(bundle.manifest, engine, bank, MIRRORS if mirrored else MIRRORS[:1])
        self._frame_size: tuple[int, int] | None = None
        self._clicks: list[Click] = []
        self._answers: list[_Answer] = []
        self._probability: F32 = np.zeros((0, 0), np.float32)
        self.stage_ms: dict[str, float] = {}
        """Milliseconds by stage of the last ``set_image``, ``click``, ``undo`` or ``prompt``."""
        if check_golden:
            check_click_golden(bundle, engine)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        threads: int | None = None,
        zoom: bool = False,
        zoom_after: int = 1,
        mirrored: bool = False,
        text_encoder: "TextEncoder | None" = None,
        check_golden: bool = True,
    ) -> Self:
        """Open the bundle at ``path`` with the ONNX Runtime CPU back end; `close` closes it."""
        bundle = read_bundle(path, unread=(CALIBRATION,))
        try:
            engine = OrtCpuEngine(bundle.path("features.onnx").parent, threads=threads)
            session = cls(
                bundle,
                engine,
                zoom=zoom,
                zoom_after=zoom_after,
                mirrored=mirrored,
                text_encoder=text_encoder,
                check_golden=check_golden,
            )
        except BaseException:
            bundle.close()
            raise
        session._closes_bundle = True
        return session

    @classmethod
    def beside(cls, inspector: Inspector, *, zoom: bool = False, zoom_after: int = 1) -> Self:
        """A session on the bundle and the engine of an ``inspector``, which must stay open. One thread runs both.

        Raises EngineError for a back end that cannot run the graphs of clicks.
        """
        if not isinstance(inspector.engine, ClickEngine):
            raise EngineError(f"{inspector.engine.name} cannot answer clicks; open the bundle with ClickSession.open")
        return cls(inspector.bundle, inspector.engine, zoom=zoom, zoom_after=zoom_after)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._closes_bundle:
            self.bundle.close()

    @property
    def clicks(self) -> tuple[Click, ...]:
        return tuple(self._clicks)

    @property
    def max_clicks(self) -> int:
        return self._spec.max_clicks

    @property
    def view(self) -> View:
        """The part of the frame that the last click was answered in."""
        return self._answers[-1].view if self._answers else whole_view(self._size())

    @property
    def probability(self) -> F32:
        """Of a defect, after all clicks so far: float32 [H, W] in 0..1, read-only; zeros before the first click."""
        self._size()
        return self._probability

    def mask(self, threshold: float = 0.5) -> Bool:
        """Where the probability is above ``threshold``: bool [H, W]."""
        return self.probability > threshold

    def set_image(self, frame: U8) -> None:
        """Take a frame (uint8 [H, W, 3], any size) and forget the clicks; the prompt stays.

        Raises UsageError for anything else.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
            raise UsageError(f"the frame is {frame.dtype} {list(frame.shape)}; pass uint8 [H, W, 3], RGB")
        self._frame_size = None  # until the frame is embedded there is nothing to click on
        # A copy: closer views are cut from it later, when the caller may have reused its buffer.
        self.stage_ms = self._encoder.set_frame(frame.copy())
        self._frame_size = (frame.shape[0], frame.shape[1])
        self._clicks, self._answers = [], []
        self._show(self._assemble([]))

    def click(self, y: float, x: float, positive: bool) -> F32:
        """Add a click at row ``y`` and column ``x`` of the frame and answer: the new `probability`.

        Raises UsageError before `set_image`, outside the frame and beyond `max_clicks`; nothing has changed then.
        """
        height, width = self._size()
        if not (math.isfinite(y) and math.isfinite(x) and -0.5 <= y <= height - 0.5 and -0.5 <= x <= width - 0.5):
            raise UsageError(f"a click at y {y:g}, x {x:g} is outside the frame of {height} x {width} pixels")
        if len(self._clicks) == self._spec.max_clicks:
            raise UsageError(f"{len(self._clicks)} clicks are all this network takes; undo some, or start over")
        self.stage_ms = {}
        clicks = [*self._clicks, Click(float(y), float(x), positive)]
        answer = self._answer(clicks, self._probability, self._answers[-1] if self._answers else None)
        self._clicks, self._answers = clicks, [*self._answers, answer]
        self._show(self._extended(self._probability, answer))
        return self._probability

    def undo(self) -> F32:
        """Take the last click back: everything is as if it had never been given.

        Raises UsageError where there is no click.
        """
        self._size()
        if not self._clicks:
            raise UsageError("there is no click to undo")
        self.stage_ms = {}
        self._clicks, self._answers = self._clicks[:-1], self._answers[:-1]
        self._show(self._assemble(self._answers))
        return self._probability

    def prompt(self, words: str | F32 | None, product: str | None = None) -> None:
        """Say what the defect is called, and answer the clicks so far again, as if it had been said first.

        Args:
            words: A kind of defect or free text; or a sentence vector float32 [prompt_dims]; or None for no words.
            product: Whose kinds are meant; the bundle's own product by default.

        Raises UsageError for words that this bundle has no vector for, and for a vector of another length.
        """
        vector = self._vector(words, product)
        before, self._prompt = self._prompt, vector
        if not self._clicks:
            return
        self.stage_ms = {}
        probability, answers = self._assemble([]), list[_Answer]()
        try:
            for given in range(1, len(self._clicks) + 1):
                answers.append(self._answer(self._clicks[:given], probability, answers[-1] if answers else None))
                probability = self._extended(probability, answers[-1])
        except BaseException:
            self._prompt = before
            raise
        self._answers = answers
        self._show(probability)

    def _answer(self, clicks: list[Click], probability: F32, last: _Answer | None) -> _Answer:
        """The answer to ``clicks`` after ``last``, whose picture of the whole frame is ``probability``."""
        frame_size, size = self._size(), self._spec.size
        view = whole_view(frame_size)
        if self._zoom and len(clicks) > self._zoom_after:
            view = next_view(marked_box(probability, clicks), frame_size, view if last is None else last.view)
        embeddings, spent = self._encoder.embed(view)
        quarter = (size[0] // 4, size[1] // 4)
        if last is not None and last.view == view:
            previous = resize_map(
                to_probability(last.logits), quarter
            )  # not by way of the frame's size: nothing is lost
        else:
            part = probability[view.top : view.top + view.height, view.left : view.left + view.width]
            previous = resize_map(np.ascontiguousarray(part), quarter)
        began = time.perf_counter()
        rows = click_rows(clicks, view, size, len(clicks) if self._free_rows else self._spec.max_clicks)
        answers = []
        for mirror, embedding in zip(self._encoder.mirrors, embeddings, strict=True):
            feed = {
                **embedding,
                "clicks": _mirrored_rows(rows, mirror, size)[None],
                "previous": mirrored_maps(previous, mirror)[None, None],
                "prompt": self._prompt[None],
            }
            answers.append(mirrored_maps(self._engine.click_decode(feed)[0], mirror))
        logits: F32 = answers[0] if len(answers) == 1 else np.stack(answers).mean(axis=0)
        spent = {**spent, "click_decode": 1e3 * (time.perf_counter() - began)}
        for stage, spent_ms in spent.items():
            self.stage_ms[stage] = self.stage_ms.get(stage, 0.0) + spent_ms
        return _Answer(view, logits)

    def _extended(self, probability: F32, answer: _Answer) -> F32:
        # Logits are enlarged rather than probabilities, as in training.
        part = to_probability(resize_map(answer.logits, (answer.view.height, answer.view.width)))
        return part if part.shape == probability.shape else paste(probability, part, answer.view)

    def _assemble(self, answers: list[_Answer]) -> F32:
        """The picture of the whole frame after ``answers``: the last of the whole frame, and what came after it."""
        frame_size = self._size()
        whole = whole_view(frame_size)
        first = max((place for place, answer in enumerate(answers) if answer.view == whole), default=0)
        probability = np.zeros(frame_size, np.float32)
        for answer in answers[first:]:
            probability = self._extended(probability, answer)
        return probability

    def _show(self, probability: F32) -> None:
        # Handed out without a copy; writing to it would change the next answer.
        probability.flags.writeable = False
        self._probability = probability

    def _size(self) -> tuple[int, int]:
        if self._frame_size is None:
            raise UsageError("there is no frame to click on; call set_image first")
        return self._frame_size

    def _vector(self, words: str | F32 | None, product: str | None) -> F32:
        dims = self._spec.prompt_dims
        if words is None:
            return np.zeros(dims, np.float32)
        if isinstance(words, str):
            vector = self._prompts().vector(product or self.bundle.manifest.product, words, self._text_encoder)
        else:
            vector = np.asarray(words, np.float32)
        length = float(np.linalg.norm(vector))
        if vector.shape != (dims,) or not math.isfinite(length) or length == 0:
            raise UsageError(
                f"the vector of the prompt has shape {list(vector.shape)} and length {length:g}; this network takes "
                f"[{dims}] of finite, non-zero length: use the text encoder it was trained with"
            )
        return (vector / length).astype(np.float32)

    def _prompts(self) -> "PromptTable":
        if self._table is None:
            from adclick_edge.words import PromptTable

            self._table = PromptTable.of_bundle(self.bundle)
            if self._table is None:
                raise UsageError(
                    f"{self.bundle.location}: has no {PROMPTS}, so words mean nothing to it; go on without words, or "
                    "export the bundle with prompts"
                )
        return self._table


def _mirrored_rows(rows: F32, mirror: Mirror, size: tuple[int, int]) -> F32:
    """Clicks [K, 3] on a view of ``size`` as they lie on its mirror image; a pixel's centre is an integer."""
    out = rows.copy()
    for axis, turned in enumerate(mirror):
        if turned:
            out[:, axis] = size[axis] - 1 - out[:, axis]
    return out
