"""Sixty requests of eight clients, many of whom go away: nothing is left, and the rest get their pictures."""

from __future__ import annotations

import pytest

from inference.soak import measure, table, visits


@pytest.fixture(scope="module")
def soaked(pipeline):
    return measure(pipeline, 60, 8, 0.4, 4, {"steps": 3})


def test_nothing_is_left_of_clients_that_go_away(soaked):
    left = soaked[0].left
    assert (left.files, left.tasks, left.connections, left.requests) == (0, 0, 0, 0)
    assert left.memory < 24 << 20


def test_the_others_get_the_pictures_that_are_drawn_alone(soaked):
    answered, alone, wrong = soaked
    many = visits(60, 0.4)
    stay = {visit.prompt for visit in many if visit.leaves is None}
    assert stay <= set(answered.answers) < {visit.prompt for visit in many} and wrong == 0
    assert len(answered.seconds) == len(answered.answers) and min(alone) > 0
    assert f"{60 - len(answered.answers)} went away. 0 answers are others" in table(
        answered, 60, alone, wrong
    )
