"""The server's ends of a camera process: records in order, messages whole, nothing that blocks."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from server.ingest.link import ControlLink, EventPipe
from server.ingest.wire import Control, ControlReader, Event, EventKind, StateChange, pack_control, pack_free


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")


async def test_records_come_in_order_and_then_the_end() -> None:
    seen: list[Event] = []
    pipe = EventPipe(asyncio.get_running_loop(), seen.extend)
    writer = os.dup(pipe.write_fd)
    pipe.passed_on()
    for seq in range(2000):
        os.write(writer, Event(EventKind.OPEN, seq).pack())
    os.close(writer)
    await asyncio.wait_for(pipe.closed, 10)
    assert [event.seq for event in seen] == list(range(2000))
    pipe.drain()
    pipe.close()


async def test_drain_delivers_what_is_there_at_once() -> None:
    seen: list[Event] = []
    pipe = EventPipe(asyncio.get_running_loop(), seen.extend)
    os.write(pipe.write_fd, Event(EventKind.OPEN, 1).pack() * 3)
    pipe.drain()
    assert len(seen) == 3
    pipe.drain()
    assert len(seen) == 3
    pipe.close()
    assert pipe.closed.done()


async def test_a_delivery_that_asks_for_more_keeps_the_order() -> None:
    """Whoever applies records may read a ledger, which drains."""
    seen: list[int] = []

    def deliver(events: list[Event]) -> None:
        for event in events:
            pipe.drain()
            seen.append(event.seq)
            if event.seq == 1:
                os.write(pipe.write_fd, Event(EventKind.OPEN, 3).pack())

    pipe = EventPipe(asyncio.get_running_loop(), deliver)
    os.write(pipe.write_fd, Event(EventKind.OPEN, 1).pack() + Event(EventKind.OPEN, 2).pack())
    pipe.drain()
    assert seen == [1, 2, 3]
    pipe.close()


async def test_messages_go_both_ways_whatever_their_size() -> None:
    heard: list[tuple[Control, bytes]] = []
    loop = asyncio.get_running_loop()
    link = ControlLink(loop, lambda kind, payload: heard.append((kind, payload)))
    remote = socket.socket(fileno=os.dup(link.remote_fd))
    link.passed_on()
    sent = [pack_free(slot, slot, True) for slot in range(1000)] + [pack_control(Control.STATE, b"x" * 150_000)]
    for message in sent:
        link.send(message)
    reader, got = ControlReader(), []
    remote.setblocking(False)
    while len(got) < len(sent):
        try:
            got += list(reader.feed(await loop.sock_recv(remote, 65536)))
        except BlockingIOError:
            await asyncio.sleep(0)
    assert [pack_control(kind, payload) for kind, payload in got] == sent
    answer = pack_control(Control.IMAGE, b"y" * 3_000_000)
    await loop.sock_sendall(remote, answer + pack_control(Control.STATE, StateChange(state="running")))
    await until(lambda: len(heard) == 2)
    assert heard[0] == (Control.IMAGE, b"y" * 3_000_000)
    remote.close()
    await asyncio.sleep(0.01)
    link.send(sent[0])
    link.close()
    link.close()


async def test_who_does_not_read_is_given_up() -> None:
    choked: list[bool] = []
    link = ControlLink(asyncio.get_running_loop(), lambda *_: None, lambda: choked.append(True))
    remote = socket.socket(fileno=os.dup(link.remote_fd))
    link.passed_on()
    for _ in range(100):
        link.send(bytes(10_000))
    assert choked == [True], "once, and memory stays bounded"
    remote.close()
