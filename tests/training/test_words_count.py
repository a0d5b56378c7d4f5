"""The issue words are for: two kinds of defect share a place, and a click alone cannot say which is meant."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch

from adclick_edge.data.sample_line import render_frame
from adclick_edge.data.sample_line.overlap import OVERLAPS, render_overlap
from adclick_edge.evaluation.click_robot import next_click
from adclick_edge.features.bank import BankOptions
from adclick_edge.features.extractor import build_extractor
from adclick_edge.features.weights import shipped_weights
from adclick_edge.files import sha256_file
from adclick_edge.models.build import build_click_network
from adclick_edge.models.presets import preset_named
from adclick_edge.training import click_store, clicks
from adclick_edge.training.checkpoint import load_model
from adclick_edge.training.click_episodes import view_inputs
from adclick_edge.training.click_pictures import DefectPicture
from adclick_edge.training.click_run import ClickConfig
from adclick_edge.training.click_sampling import click_array
from adclick_edge.training.click_store import ClickStore
from adclick_edge.training.clicks import train_clicks
from adclick_edge.words import shipped_prompts

SIDE = 192
PRESET = msgspec.structs.replace(preset_named("edge-s"), click_width=16)
PRODUCT = "flange"


@dataclass(frozen=True)
class Overlaps:
    """Pictures of the flange with two overlapping kinds of defect, from a seed of their own."""

    seed: int
    count: int

    @property
    def name(self) -> str:
        return f"overlaps_{self.seed}"

    def identity(self) -> str:
        return f"{self.name} {self.count}"

    def normals(self) -> list[npt.NDArray[np.uint8]]:
        return [render_frame(PRODUCT, seed=self.seed, index=i, split="train", size=SIDE)[0] for i in range(8)]

    def defects(self, normals: object) -> Iterator[DefectPicture]:
        pairs = OVERLAPS[PRODUCT]
        for index in range(self.count):
            frame, masks = render_overlap(PRODUCT, pairs[index % len(pairs)], seed=self.seed, index=index, size=SIDE)
            yield DefectPicture(frame, tuple(masks.items()), -1)


@pytest.mark.slow
def test_the_right_word_beats_none_and_a_wrong_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click_store, "BANK_SIDES_PX", (SIDE, SIDE))
    monkeypatch.setattr(click_store, "WHOLE_FRAME_SHARE", 1.0)
    monkeypatch.setattr(
        clicks,
        "WorldPictures",
        lambda seed, count: Overlaps(seed, count if seed >= clicks.FIRST_VALIDATION_WORLD else 240),
    )
    weights = shipped_weights("edge_backbone")
    config = ClickConfig(
        preset=PRESET,
        size=(SIDE, SIDE),
        bank=BankOptions(rows=500, search_dims=32),
        worlds=1,
        validation_worlds=1,
        pictures_per_world=60,
        backbone_sha256=sha256_file(weights),
        backbone_file=str(weights),
        steps=1000,
        batch_pixels=8 * SIDE**2,
        learning_rate=2e-3,
        warm_up_steps=30,
        validate_every=250,
        words_share=0.6,
    )
    run = train_clicks(tmp_path / "run", config, samples=tmp_path / "samples", device_name="cpu")
    network = build_click_network(PRESET, build_extractor(PRESET))
    load_model(run / "best.safetensors", network)
    network.eval()
    # The validation pictures are drawn from another seed; they chose the checkpoint, by answers without words.
    (folder,) = (tmp_path / "samples").glob(f"overlaps_{clicks.FIRST_VALIDATION_WORLD}-*")
    overlaps = {way: np.mean(values) for way, values in overlaps_by_word(network, ClickStore.open(folder)).items()}
    print({way: round(float(value), 3) for way, value in overlaps.items()})
    assert overlaps["right"] > overlaps["none"]
    assert overlaps["right"] > overlaps["wrong"] + 0.03


@torch.no_grad()
def overlaps_by_word(network: torch.nn.Module, store: ClickStore) -> dict[str, list[float]]:
    """IoU after one click on each kind, with its word, none, and the other kind's."""
    table, found = shipped_prompts(), dict[str, list[float]](right=[], none=[], wrong=[])
    for view in range(len(store)):
        inputs = {k: torch.from_numpy(np.array(v))[None] for k, v in view_inputs(store, view, 0, 0, SIDE).items()}
        embedding = network.encode(**inputs)
        for bit, kind in enumerate(store.kinds[view]):
            truth = np.asarray(store.arrays["masks"][view] & (1 << bit) > 0)
            click = next_click(np.zeros((SIDE, SIDE), np.float32), truth, [])
            assert click is not None
            other = store.kinds[view][1 - bit]
            prompts = {"right": table.vector(None, kind), "wrong": table.vector(None, other)}
            for way, values in found.items():
                prompt = torch.from_numpy(prompts.get(way, np.zeros(table.dims, np.float32)))[None]
                rows = torch.from_numpy(click_array([click]))[None]
                previous = torch.zeros(1, 1, SIDE // 4, SIDE // 4)
                logits = network.decode(embedding, rows, previous, prompt)[:, None]
                full = torch.nn.functional.interpolate(logits, size=(SIDE, SIDE), mode="bilinear")[0, 0].numpy() > 0
                values.append(float((full & truth).sum() / (full | truth).sum()))
    return found
