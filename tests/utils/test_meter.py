"""Speed and remaining time of long work."""

import pytest

from lightning_paf.utils import meter as meter_file
from lightning_paf.utils.meter import Meter


@pytest.fixture
def clock(monkeypatch):
    times = iter([100.0, 110.0, 165.0, 200.0, 201.0])
    monkeypatch.setattr(meter_file.time, "monotonic", lambda: next(times))


def test_without_a_terminal_a_line_a_minute_and_the_last_one_are_printed(clock, capsys):
    with Meter("Drawing", 3000) as meter:
        for done in (1000, 1100, 1650, 3000, 3000):
            meter.update(done)
    assert capsys.readouterr().err.splitlines() == [
        "Drawing: 1,000 of 3,000",
        "Drawing: 1,650 of 3,000, 10 a second, 0:02:15 left",
        "Drawing: 3,000 of 3,000, 20 a second, 0:00:00 left",
    ]


def test_other_ranks_are_silent(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Meter("Drawing", 10) as meter:
        meter.update(10)
    assert capsys.readouterr().err == ""
