"""What viewers cost, as a table."""

from __future__ import annotations

from server.bench.viewers import Round, parser, table


def test_means_by_number_of_viewers_and_the_ratio_to_one_each() -> None:
    rounds = [
        Round(1, {"server": 0.1, "camera": 0.3}, 20.0, 20.0),
        Round(16, {"server": 0.2, "camera": 0.3}, 20.0, 320.0),
        Round(1, {"server": 0.1, "camera": 0.5}, 22.0, 22.0),
        Round(16, {"server": 0.2, "camera": 0.5}, 20.0, 320.0),
    ]
    head, one, sixteen = (line.split() for line in table(rounds))
    assert head == ["viewers", "each", "camera", "server", "cores", "to", "1", "each", "detected/s", "sent/s"]
    assert one == ["1", "0.400", "0.100", "0.500", "1.000", "21.0", "21.0"]
    assert sixteen == ["16", "0.400", "0.200", "0.600", "1.200", "20.0", "320.0"]


def test_viewers_are_a_list() -> None:
    assert parser().parse_args(["--viewers", "0,1,16"]).viewers == [0, 1, 16]
