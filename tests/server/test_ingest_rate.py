"""max_fps: exact where it can be, never above, and jitter costs nothing."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.ingest.rate import LiveAxis, RateLimiter

rates = st.floats(0.5, 60)


def accepted(max_fps: float, times: list[float]) -> list[int]:
    limiter = RateLimiter(max_fps)
    return [index for index, time in enumerate(times) if limiter.accept(time)]


def test_a_third_of_the_rate_is_every_third_frame() -> None:
    assert accepted(10, [n / 30 for n in range(3000)]) == list(range(0, 3000, 3))


@pytest.mark.parametrize(("fps", "max_fps"), [(25, 10), (30, 25), (12.5, 5), (24, 23.976), (60, 7)])
def test_the_mean_rate_is_exact_over_a_long_time(fps: float, max_fps: float) -> None:
    seconds = 600
    count = len(accepted(max_fps, [n / fps for n in range(int(fps * seconds))]))
    assert abs(count - max_fps * seconds) <= 1


@pytest.mark.parametrize("max_fps", [25.0, 30.0, 1000.0])
def test_a_slower_stream_passes_whole(max_fps: float) -> None:
    assert len(accepted(max_fps, [100 + n / 25 for n in range(1000)])) == 1000


@given(rates, st.lists(st.floats(0, 3), min_size=1, max_size=200))
def test_never_more_than_the_rate_in_any_span(max_fps: float, gaps: list[float]) -> None:
    times = list(itertools.accumulate(gaps))
    taken = [times[index] for index in accepted(max_fps, times)]
    for first, last in itertools.combinations(range(len(taken)), 2):
        assert last - first + 1 <= (taken[last] - taken[first]) * max_fps + 2.5 + 1e-6


@given(
    st.floats(5, 60),
    st.floats(0.1, 1),
    st.lists(st.floats(-0.45, 0.45), min_size=50, max_size=300),
)
def test_jitter_does_not_cost_frames(fps: float, share: float, jitter: list[float]) -> None:
    """Frames that come up to .45 of their distance too early or too late: as many pass as without jitter, but for the
    beginning."""
    times = [(n + j) / fps for n, j in enumerate(jitter)]
    assert len(accepted(fps * share, times)) >= len(times) * share - 3


def test_no_credit_is_saved_up_in_a_pause() -> None:
    times = [n / 25 for n in range(50)] + [8 + n / 25 for n in range(50)]
    assert abs(len(accepted(5, times)) - 20) <= 1


@pytest.mark.parametrize("jump", [-1000.0, 1000.0, -0.5])
def test_a_jump_of_the_clock_starts_a_new_grid(jump: float) -> None:
    times = [n / 25 for n in range(100)]
    times += [times[-1] + jump + n / 25 for n in range(100)]
    assert abs(len(accepted(5, times)) - 40) <= 1


def test_a_rate_that_is_none_is_refused() -> None:
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="max_fps"):
            RateLimiter(rate)


@pytest.mark.parametrize("speed", [0.0, 0.01, 0.2, 1.0, 1.02, 5.0, 1000.0])
def test_time_stamps_at_a_wrong_rate_change_nothing(speed: float) -> None:
    """25 fps by the arrivals, whatever the camera's time stamps say, capped to 5 for a minute."""
    axis, limiter = LiveAxis(), RateLimiter(5)
    count = sum(limiter.accept(axis.time(n / 25 * speed, 100 + n / 25)) for n in range(25 * 60))
    # Until it is found out, two seconds, all or none may pass.
    assert 5 * 58 - 1 <= count <= 5 * 58 + 51


def test_an_honest_axis_is_kept_over_pauses_and_jitter() -> None:
    axis = LiveAxis()
    times = [axis.time(n / 25, n / 25 + (0.4 if n % 25 == 0 else 0.01)) for n in range(500)]
    assert times == [n / 25 for n in range(500)]
    assert axis.time(None, 7.5) == 7.5, "no time stamp"
