import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adclick_edge.errors import UsageError
from adclick_edge.features.embedding import (
    ConcatEmbedding,
    FoldedPatchEmbedding,
    PatchEmbedding,
    unfolded_patch_embedding,
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def random_maps(sizes, seed, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return {stride: torch.randn(batch, *size, generator=generator) for stride, size in sizes.items()}


def relative_difference(got, want):
    return float((got - want).abs().max() / want.abs().max())


map_size = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))  # C, h, w


@given(
    grid_map=map_size,
    others=st.dictionaries(st.sampled_from([2, 4, 16, 32]), map_size, max_size=3),
    layer_dims=st.integers(1, 70),
    dims=st.integers(1, 50),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_folding_is_exact(grid_map, others, layer_dims, dims, seed):
    sizes = {8: grid_map, **others}
    maps = random_maps(sizes, seed)
    embedding = FoldedPatchEmbedding({stride: size[0] for stride, size in sizes.items()}, layer_dims, dims)
    got, want = embedding(maps), unfolded_patch_embedding(maps, layer_dims, dims)
    assert got.shape == (2, dims, grid_map[1], grid_map[2])
    assert relative_difference(got, want) <= 1e-5


def test_folding_is_exact_at_the_paper_widths():
    maps = random_maps({4: (256, 6, 10), 8: (512, 3, 5), 16: (1024, 2, 3)}, seed=3, batch=1)
    embedding = FoldedPatchEmbedding({4: 256, 8: 512, 16: 1024})
    assert embedding.dims == 512
    assert relative_difference(embedding(maps), unfolded_patch_embedding(maps)) <= 1e-5
    outputs = [embedding.get_buffer(f"kernel_{stride}").shape[0] for stride in (4, 8, 16)]
    assert max(outputs) <= 173  # not 512: the rows that are zero are left out


def test_reference_value_by_hand():
    # One channel, one stride-8 map: the first of 9 pooled entries is the neighbour up and left, 0 outside the map.
    grid = torch.arange(6.0).reshape(1, 1, 2, 3) + 1
    features = unfolded_patch_embedding({8: grid}, layer_dims=9, dims=9)
    assert features[0, 0].tolist() == [[0, 0, 0], [0, 1, 2]]
    assert features[0, 4].tolist() == grid[0, 0].tolist()


def test_folded_weights_are_not_saved():
    assert FoldedPatchEmbedding({8: 3}, 8, 8).state_dict() == {}


def test_concat_is_mean_resize_stack():
    maps = random_maps({4: (2, 8, 12), 8: (3, 4, 6), 16: (5, 2, 3)}, seed=5)
    embedding = ConcatEmbedding({4: 2, 8: 3, 16: 5})
    features = embedding(maps)
    assert embedding.dims == 8
    assert features.shape == (2, 8, 4, 6)
    inner = maps[8][:, :, 0:3, 1:4].mean(dim=(2, 3))
    torch.testing.assert_close(features[:, :3, 1, 2], inner)
    corner = maps[16][:, :, 0:2, 0:2].mean(dim=(2, 3))  # 4 of 9 cells are inside
    torch.testing.assert_close(features[:, 3:, 0, 0], corner)


def test_concat_keeps_a_constant_up_to_the_border():
    maps = {8: torch.full((1, 2, 5, 7), 3.0), 16: torch.full((1, 4, 3, 4), -2.0)}
    features = ConcatEmbedding({8: 2, 16: 4})(maps)
    torch.testing.assert_close(features[:, :2], torch.full((1, 2, 5, 7), 3.0))
    torch.testing.assert_close(features[:, 2:], torch.full((1, 4, 5, 7), -2.0))


@pytest.mark.parametrize("build", [lambda c: FoldedPatchEmbedding(c, 16, 8), lambda c: ConcatEmbedding(c, tuple(c))])
def test_bad_maps_are_named(build):
    with pytest.raises(UsageError, match=r"strides \[4, 16\] lack 8"):
        build({4: 2, 16: 3})
    embedding: PatchEmbedding = build({8: 2, 16: 3})
    with pytest.raises(UsageError, match="no map of stride 16"):
        embedding({8: torch.zeros(1, 2, 4, 4)})
    with pytest.raises(UsageError, match="stride 16 has 5 channels, not 3"):
        embedding({8: torch.zeros(1, 2, 4, 4), 16: torch.zeros(1, 5, 2, 2)})


def test_concat_names_a_stride_the_backbone_lacks():
    with pytest.raises(UsageError, match=r"no map of stride \[16\]"):
        ConcatEmbedding({8: 2})


class StridedBackbone(nn.Module):
    """Strided convolutions in front of an embedding, so that the image size is the only free size at export."""

    def __init__(self, channels, embedding):
        super().__init__()
        self.strides = list(channels)
        self.layers = nn.ModuleList(nn.Conv2d(3, c, stride, stride) for stride, c in channels.items())
        self.embedding = embedding

    def forward(self, image):
        return self.embedding({s: layer(image) for s, layer in zip(self.strides, self.layers, strict=True)})


@pytest.mark.parametrize("build", [lambda c: FoldedPatchEmbedding(c, 48, 24), ConcatEmbedding])
def test_export_with_free_size(build):
    channels = {4: 5, 8: 7, 16: 9}
    torch.manual_seed(0)
    net = StridedBackbone(channels, build(channels)).eval()
    free = {0: torch.export.Dim("n"), 2: 16 * torch.export.Dim("h"), 3: 16 * torch.export.Dim("w")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            net, (torch.rand(2, 3, 64, 96),), dynamo=True, dynamic_shapes=(free,), input_names=["image"], verbose=False
        )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for shape in [(1, 3, 32, 32), (3, 3, 80, 48)]:
        image = torch.rand(shape)
        with torch.no_grad():
            want = net(image).numpy()
        (got,) = session.run(None, {"image": image.numpy()})
        np.testing.assert_allclose(got, want, atol=1e-5)
