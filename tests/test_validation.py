"""The best checkpoint, and the end of a loss's decrease: known answers."""

import pytest

from detsd.train.validation import best_step, on_plateau


def test_the_best_step():
    validations = {
        2: {"val_loss": 0.5, "score": 0.1},
        4: {"val_loss": 0.4, "score": 0.3},
        6: {"val_loss": 0.4, "score": 0.3},
        8: {"val_loss": 0.45},
    }
    assert best_step(validations, "val_loss") == 4  # of equal ones, the first
    assert best_step(validations, "score") == 4
    assert best_step({8: {"val_loss": 0.45}}, "score") is None
    assert best_step({}, "val_loss") is None


@pytest.mark.parametrize(
    ("losses", "window", "levelled_off"),
    [
        ([0.9, 0.5, 0.4, 0.4, 0.4], 3, True),
        ([0.9, 0.5, 0.4, 0.4, 0.4], None, False),
        ([0.9, 0.5, 0.4, 0.4, 0.4], 4, True),
        ([0.9, 0.5, 0.4, 0.4, 0.4], 5, False),  # fewer than the window, beside the initializer's
        ([0.9, 0.8, 0.7, 0.6, 0.5], 3, False),  # still falling
        ([0.5, 0.5, 0.5, 0.5], 3, True),  # nothing is learned
        ([0.9, 0.5, 0.4, 0.4, 0.9], 3, False),  # rising is not levelled off
        ([0.9], 2, False),
    ],
)
def test_when_a_loss_has_levelled_off(losses, window, levelled_off):
    assert on_plateau(losses, window, 0.15) is levelled_off


def test_the_ratio_is_of_variances():
    losses = [1.0, 0.0, 0.2, 0.0, 0.2]  # variances: .01 of the last four, .1376 of all
    assert on_plateau(losses, 4, 0.0727)
    assert not on_plateau(losses, 4, 0.0726)
