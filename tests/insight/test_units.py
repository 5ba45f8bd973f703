"""Figures in three digits and a unit."""

from ossia.insight import units


def test_three_digits_whatever_the_size() -> None:
    found = [units.digits(x) for x in (0, 0.01234, 1.005, 9.996, 12.345, 99.96, 1234.5, 24)]
    assert found == ["0", "0.012", "1.00", "10.0", "12.3", "100", "1,234", "24"]


def test_counts_sizes_and_rates() -> None:
    assert units.amount(20_914_757_184) == "20.9\N{NO-BREAK SPACE}B"
    assert units.amount(999_999_999) == "1.00\N{NO-BREAK SPACE}B"
    assert units.amount(768) == "768"
    assert units.size(13_761_264_768) == "13.8\N{NO-BREAK SPACE}GB"
    assert units.flops(44.7e12) == "44.7\N{NO-BREAK SPACE}TFLOP"
    assert units.rate(2.25e15) == "2.25\N{NO-BREAK SPACE}PFLOP/s"


def test_seconds() -> None:
    found = [units.seconds(x).replace("\N{NO-BREAK SPACE}", " ") for x in (12.34, 0.0403, 2e-5)]
    assert found == ["12.3 s", "40.3 ms", "20 µs"]
