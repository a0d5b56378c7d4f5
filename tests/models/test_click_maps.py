import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.models.click_maps import disk_maps

PLACES = st.lists(
    st.tuples(st.floats(-6, 30, width=32), st.floats(-6, 30, width=32), st.sampled_from([-1.0, 0.0, 1.0])), max_size=6
)


def as_tensor(clicks):
    rows = torch.zeros(1, 6, 3)
    for place, click in enumerate(clicks):
        rows[0, place] = torch.tensor(click)
    return rows


@settings(deadline=None, max_examples=30)
@given(PLACES, st.randoms(use_true_random=False))
def test_maps_are_the_disks_of_each_sign_in_any_order(clicks, random):
    rows = as_tensor(clicks)
    found = disk_maps(rows, (20, 24))
    y, x = np.mgrid[:20, :24].astype(np.float32)
    want = np.zeros((2, 20, 24), np.float32)
    for row, column, label in clicks:
        if label:
            inside = (y - np.float32(row)) ** 2 + (x - np.float32(column)) ** 2 <= 25
            want[0 if label > 0 else 1][inside] = 1
    np.testing.assert_array_equal(found[0].numpy(), want)
    order = list(range(6))
    random.shuffle(order)
    assert torch.equal(disk_maps(rows[:, order], (20, 24)), found)


def test_a_disk_has_its_81_pixels():
    maps = disk_maps(torch.tensor([[[10.0, 12.0, 1.0], [0.0, 0.0, -1.0], [5.0, 5.0, 0.0]]]), (24, 24))
    assert maps.shape == (1, 2, 24, 24)
    assert maps[0, 0].sum() == 81  # lattice points within 5 of the centre
    assert maps[0, 0, 15, 12] == 1  # the rim is inside
    assert maps[0, 0, 15, 13] == 0
    assert maps[0, 1].sum() == 26  # its quarter, with both axes


def test_no_clicks_no_disks():
    assert disk_maps(torch.zeros(2, 24, 3), (16, 16)).abs().max() == 0
