from collections.abc import Sequence

import numpy as np
import torch

from adclick_edge.data.clicks import MAX_CLICKS, Click
from adclick_edge.training.click_offsets import FITTED_CLICKS, ClickedView, fit_offsets

SIDE = 24


class Timid:
    """Knows the mask, and says so with a probability that grows with the clicks; the offsets are added as a decoder would."""

    def __init__(self, mask: np.ndarray, offsets: torch.Tensor, sure: Sequence[float]) -> None:
        self.mask, self.offsets, self.sure = mask, offsets, sure
        self.asked: list[int] = []

    def __call__(self, clicks: Sequence[Click]) -> np.ndarray:
        count = len(clicks)
        self.asked.append(count)
        inside = self.sure[count - 1]
        logits = np.where(self.mask, np.log(inside / (1 - inside)), -4.0) + float(self.offsets[count])
        return (1 / (1 + np.exp(-logits))).astype(np.float32)


def view(offsets: torch.Tensor, sure: Sequence[float], top: int) -> ClickedView:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + 8, 4:15] = True
    return ClickedView(mask, Timid(mask, offsets, sure))


def test_offsets_lift_what_is_right_but_timid() -> None:
    offsets = torch.full((MAX_CLICKS + 1,), 7.0)
    views = [view(offsets, (0.25, 0.9, 0.9, 0.9, 0.9), top) for top in (2, 9)]
    fitted = fit_offsets(offsets, views)
    assert offsets[0] == 0
    assert torch.sigmoid(torch.logit(torch.tensor(0.25)) + offsets[1]) > 0.49
    found = views[0].answer([Click(0, 0, True)])
    np.testing.assert_array_equal(found > 0.49, views[0].mask)
    assert fitted[1] == round(float(offsets[1]), 4)
    assert set(fitted) == set(range(1, FITTED_CLICKS + 1))
    assert (offsets[FITTED_CLICKS:] == offsets[FITTED_CLICKS]).all()


def test_later_offsets_come_on_top_of_earlier_ones() -> None:
    """The second answer is timid too, and by the first click's offset alone it would still be too low."""
    offsets = torch.zeros(MAX_CLICKS + 1)
    wrong = np.zeros((SIDE, SIDE), bool)
    wrong[0:4, 0:4] = True

    class Partly(Timid):
        def __call__(self, clicks: Sequence[Click]) -> np.ndarray:
            found = super().__call__(clicks)
            if len(clicks) == 1:  # an error is left to click on
                found[wrong] = 0.95
            return found

    mask = np.zeros((SIDE, SIDE), bool)
    mask[10:20, 4:15] = True
    fit_offsets(offsets, [ClickedView(mask, Partly(mask, offsets, (0.4, 0.1, 0.1, 0.1, 0.1)))])
    assert torch.sigmoid(torch.logit(torch.tensor(0.4)) + offsets[1]) > 0.49
    assert torch.sigmoid(torch.logit(torch.tensor(0.1)) + offsets[2]) > 0.49
    assert offsets[2] > offsets[1]


def test_a_network_that_is_right_already_keeps_its_answers() -> None:
    offsets = torch.zeros(MAX_CLICKS + 1)
    known = view(offsets, (0.97,) * 5, 5)
    fit_offsets(offsets, [known])
    np.testing.assert_array_equal(known.answer([Click(0, 0, True)]) > 0.49, known.mask)


def test_a_finished_view_is_not_clicked_again() -> None:
    offsets = torch.zeros(MAX_CLICKS + 1)
    known = view(offsets, (0.97,) * 5, 5)
    fit_offsets(offsets, [known])
    assert set(known.answer.asked) == {1}  # type: ignore[attr-defined]
