"""Film strips: which steps they show, and where."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unclip.app.strip import film_strip
from unclip.diffusion.samplers import Step


def steps(count: int, size: int = 64, n: int = 1) -> list[Step]:
    """Flat pictures: x of step k is grey 2k and its x0 100 + 2k, and 40 more for every next picture."""

    def flat(k: int) -> torch.Tensor:
        grey = torch.tensor([float(k + 40 * i) for i in range(n)]) / 127.5 - 1
        return grey.view(n, 1, 1, 1).expand(n, 3, size, size)

    return [Step(count - k, flat(2 * k), flat(100 + 2 * k)) for k in range(1, count + 1)]


def shades(strip, rows: int, columns: int, size: int = 64) -> list[list[int]]:
    """The grey of every frame; between the frames there is white."""
    assert strip.size == (columns * (size + 2) - 2, rows * (size + 2) - 2)
    pixels = np.asarray(strip)
    frames = [
        [pixels[y : y + size, x : x + size] for x in range(0, strip.width, size + 2)]
        for y in range(0, strip.height, size + 2)
    ]
    assert all((frame == frame[0, 0, 0]).all() for row in frames for frame in row)
    assert (pixels[:, size : size + 2] == 255).all() or columns == 1
    return [[int(frame[0, 0, 0]) for frame in row] for row in frames]


@pytest.mark.parametrize(
    "count, columns, chosen",
    [
        (8, 8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (24, 4, [6, 12, 18, 24]),
        (10, 4, [2, 5, 7, 10]),  # as even as may be
        (5, 1, [5]),
        (3, 8, [1, 2, 3]),  # no more than there are
    ],
)
def test_even_steps_of_which_the_last_is_one(count, columns, chosen):
    made = film_strip(steps(count), columns)
    assert shades(made, 2, len(chosen)) == [[2 * k for k in chosen], [100 + 2 * k for k in chosen]]


def test_two_rows_for_each_picture():
    found = shades(film_strip(steps(4, n=3), 2), 6, 2)
    assert found == [[4, 8], [104, 108], [44, 48], [144, 148], [84, 88], [184, 188]]


def test_small_pictures_are_enlarged_and_noise_is_cut_off():
    assert shades(film_strip(steps(2, size=8), 2), 2, 2, size=64) == [[2, 4], [102, 104]]
    loud = Step(1, torch.full((1, 3, 100, 100), 3.0), torch.full((1, 3, 100, 100), -3.0))
    assert shades(film_strip([loud]), 2, 1, size=100) == [[255], [0]]


def test_a_generator_will_do():
    assert film_strip(iter(steps(3))) == film_strip(steps(3))


@pytest.mark.parametrize("count, columns", [(0, 8), (3, 0)])
def test_a_strip_of_nothing(count, columns):
    with pytest.raises(ValueError, match=f"these are {count} and {columns}"):
        film_strip(steps(count), columns)
