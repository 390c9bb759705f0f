"""One limit of memory for all works of a process."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bronze.errors import ConfigError, Stopped
from bronze.execution import budget
from bronze.execution.memory_shares import Claim, MemoryShares, Share, check_least, least_memory
from tests.unit.test_portion import IN_MEMORY

TIMEOUT = 20
STREAMS, WORKS = st.integers(0, 6), st.integers(1, 8)


@st.composite
def shares_of_processes(draw: st.DrawFn) -> tuple[MemoryShares, int]:
    """The shares of a process whose memory suffices, and the number of its streams."""
    streams = draw(STREAMS)
    limit = draw(st.integers(least_memory(streams), 64 * 10**9))
    return MemoryShares(limit, streams, draw(WORKS)), streams


def all_shares(shares: MemoryShares, streams: int, leased: list[Share]) -> int:
    """What the process takes, with the libraries and the service, if all keep within their shares."""
    sizes = [share.memory - budget.LIBRARIES for share in leased]
    of_streams = streams * (shares.stream.memory - budget.LIBRARIES)
    return budget.LIBRARIES + budget.SERVICE + of_streams + sum(sizes)


@IN_MEMORY
@given(process=shares_of_processes(), data=st.data())
def test_shares_never_exceed_the_limit_and_are_all_given_back(
    process: tuple[MemoryShares, int], data: st.DataObject
) -> None:
    """Whatever begins and ends in whatever order: the shares fit, each has at least the least, a
    work never waits while nothing else goes on, and in the end all memory is free again.
    """
    shares, streams = process
    free = shares.free
    claims: list[Claim] = []
    leased: dict[Claim, Share] = {}
    for _ in range(data.draw(st.integers(1, 30))):
        action = data.draw(st.sampled_from(("claim", "take", "give back")))
        if action == "claim":
            claims.append(shares.claim("a run", data.draw(st.integers(1, 3))))
        elif claims and action == "give back":
            claim = claims.pop(data.draw(st.integers(0, len(claims) - 1)))
            leased.pop(claim, None)
            shares.give_back(claim)
        for claim in claims:
            share = shares.take(claim)
            if share is not None:
                assert leased.setdefault(claim, share) == share
        assert not claims or leased or any(shares.take(claim) for claim in claims)
        given_out = list(leased.values())
        assert all_shares(shares, streams, given_out) <= shares.limit
        assert all(s.memory >= budget.LIBRARIES + budget.LEAST_SHARE for s in given_out)
        assert shares.room == 0 or not (set(claims) - set(leased))
    for claim in claims:
        shares.give_back(claim)
    assert shares.free == free


@IN_MEMORY
@given(process=shares_of_processes(), priority=st.integers(1, 5))
def test_a_work_is_not_passed_for_ever(process: tuple[MemoryShares, int], priority: int) -> None:
    """Urgent works that come without an end do not keep out a work that is not urgent."""
    shares, _ = process
    running = [shares.claim("urgent", 1)]
    while shares.take(running[-1]):
        running.append(shares.claim("urgent", 1))
    waiting = shares.claim("not urgent", priority)
    for _ in range(8 * priority + len(running)):
        shares.give_back(running.pop(0))
        running.append(shares.claim("urgent", 1))
        for claim in (*running, waiting):
            shares.take(claim)
        if waiting.size:
            break
    assert waiting.size


@IN_MEMORY
@given(process=shares_of_processes())
def test_as_many_works_as_are_said_have_room_at_once(process: tuple[MemoryShares, int]) -> None:
    """``room`` counts down to 0, and says why there is no more; each of them gets a share. A work
    alone has at least half of what the streams leave.
    """
    shares, _ = process
    free = shares.free
    assert shares.why_full() == ""
    for number in range(shares.at_once, 0, -1):
        assert shares.room == number
        claim = shares.claim(f"run {number}", 2)
        share = shares.take(claim)
        assert share is not None
        if number == shares.at_once:
            assert share.memory - budget.LIBRARIES >= free // 2
    assert shares.room == 0
    assert f"run {shares.at_once}" in shares.why_full()


@IN_MEMORY
@given(
    streams=st.integers(1, 6),
    works=WORKS,
    needed=st.integers(budget.LIBRARIES + budget.LEAST_SHARE, 4 * 10**9),
    number=st.integers(0, 7),
)
def test_the_memory_that_a_refusal_asks_for_is_enough_beside_others(
    streams: int, works: int, needed: int, number: int
) -> None:
    """With what a work's hint asks for, each stream and each work gets what it needs, whatever
    others have leased before.
    """
    shares = MemoryShares(least_memory(streams), streams, works)
    lease = shares.take(shares.claim("a run", 2))
    assert lease is not None
    raised = MemoryShares(budget.process_memory(needed, shares.stream.parts), streams, works)
    assert raised.stream.memory >= needed
    raised = MemoryShares(budget.process_memory(needed, lease.parts), streams, works)
    for _ in range(number % works):
        raised.take(raised.claim("another", 2))
    share = raised.take(raised.claim("a run", 2))
    assert share is not None
    assert share.memory >= needed


@given(streams=STREAMS, works=WORKS)
def test_too_little_memory_is_refused_with_the_least_that_would_do(
    streams: int, works: int
) -> None:
    """What the hint asks for is enough, and a byte less than the least is not."""
    with pytest.raises(ConfigError) as refused:
        check_least(least_memory(streams) - 1, streams)
    (asked,) = re.findall(r'to "(\d+)MB"', refused.value.hint)
    check_least(int(asked) * 10**6, streams)
    with pytest.raises(ConfigError):
        MemoryShares(least_memory(streams) - 1, streams, works)


def test_the_sentence_of_a_refusal() -> None:
    """It names the memory, what is to go on in it, and what that needs."""
    with pytest.raises(ConfigError) as refused:
        check_least(512 * 10**6, 2)
    assert refused.value.message == (
        "[run] memory is 512MB, and a service that runs, verifies and maintains tables beside 2"
        " streams needs at least 670MB."
    )


def test_one_stream_and_a_work_fit_into_the_least_memory_of_a_config() -> None:
    """512 MB suffice for a service with one stream."""
    assert least_memory(1) <= 512 * 10**6


def test_a_work_waits_for_memory_and_begins_when_another_ends() -> None:
    """It says what it waits for; what is urgent comes first when there is room."""
    shares = MemoryShares(512 * 10**6, 1, 2)
    began: list[str] = []
    sentences: list[str] = []
    waits = threading.Semaphore(0)

    def note(sentence: str) -> None:
        sentences.append(sentence)
        waits.release()

    def work(name: str, priority: int) -> None:
        with shares.lease(name, priority, notify=note):
            began.append(name)

    with ThreadPoolExecutor() as pool:
        with shares.lease("the verification"):
            late = pool.submit(work, "a run", 3)
            assert waits.acquire(timeout=TIMEOUT)
            urgent = pool.submit(work, "an urgent run", 1)
            assert waits.acquire(timeout=TIMEOUT)
            assert began == []
        late.result(TIMEOUT)
        urgent.result(TIMEOUT)
    assert began == ["an urgent run", "a run"]
    assert sentences == [
        "[run] memory = 512MB has no room beside the verification",
        "[run] memory = 512MB has no room beside the verification, a run",
    ]
    assert shares.room == 1


def test_a_work_that_waits_for_memory_can_be_stopped() -> None:
    """It ends as stopped, and nothing waits for it any more."""
    shares, stop = MemoryShares(512 * 10**6, 1, 2), threading.Event()
    with shares.lease("the verification"):
        with pytest.raises(Stopped), shares.lease("a run", stop=stop, notify=lambda _: stop.set()):
            pass
        assert shares.why_full().endswith("beside the verification")
    assert shares.room == 1


def test_a_share_is_given_back_when_its_work_fails() -> None:
    """Its memory is free for the next one."""
    shares = MemoryShares(512 * 10**6, 1, 2)
    with pytest.raises(ValueError, match="broken"), shares.lease("a run"):
        raise ValueError("broken")
    assert shares.room == 1
