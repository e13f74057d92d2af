"""Colours by name, and pictures painted in them."""

import pytest
import torch

from training.icons import colours


def test_recolouring_reaches_the_hue():
    red = torch.zeros(1, 4, 8, 8)
    red[:, 0], red[:, 1:3], red[:, 3] = 0.8, 0.1, 1
    typical = colours.measure(red).typical
    for name, target in colours.OBJECTS.items():
        painted = colours.recolour(red, typical, torch.tensor([target]))
        hsv = colours.to_hsv(painted[:, :3]).mean((0, 2, 3))
        assert hsv.tolist() == pytest.approx(list(target), abs=1.0 if target[1] > 0.2 else 6), name
    black = torch.zeros(1, 4, 8, 8)
    black[:, 3] = 1  # outlines stay
    assert torch.equal(colours.recolour(black, typical, torch.tensor([colours.OBJECTS["pink"]])), black)


def test_hsv_there_and_back():
    rgb = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(colours.to_rgb(colours.to_hsv(rgb)), rgb, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rgb, name", [
    ((220, 30, 30), "red"), ((250, 150, 30), "orange"), ((250, 220, 60), "yellow"), ((70, 170, 80), "green"),
    ((40, 100, 220), "blue"), ((130, 70, 190), "purple"), ((250, 150, 200), "pink"), ((120, 75, 45), "brown"),
    ((20, 20, 20), "black"), ((250, 250, 250), "white"), ((140, 140, 145), "gray"),
    ((60, 200, 190), "turquoise"),
])  # fmt: skip
def test_names_of_colours(rgb, name):
    pixel = torch.tensor(rgb).view(1, 3, 1, 1) / 255
    assert colours.NAMES[int(colours.name_pixels(colours.to_hsv(pixel)))] == name
