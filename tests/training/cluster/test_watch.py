"""How processes of a run notice each other's end; here they are threads over loopback."""

import itertools
import socket
import threading
import time

import pytest

from fewstep.training.cluster import exits, watch
from fewstep.training.cluster.channel import Channel, Peer
from fewstep.training.cluster.watch import Watch
from tests.training.killed import wait_for

PEERS = [Peer(i, f"host{i}", 100 + i) for i in range(3)]


class Ended(BaseException):
    """Raised instead of ending the process."""


@pytest.fixture(autouse=True)
def ends(monkeypatch):
    """Exit codes of the processes that have "ended". All limits are short."""
    found = []

    def end(code):
        found.append(code)
        raise Ended

    monkeypatch.setattr(exits, "end", end)
    for name, seconds in {"BEAT": 0.05, "HUNG": 0.5, "GRACE": 0.2, "LINGER": 0.0}.items():
        monkeypatch.setattr(watch, name, seconds)
    # The thread of a process that has "ended" stops.
    monkeypatch.setattr("threading.excepthook", lambda hooked: None)
    return found


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        there = socket.create_connection(listening.getsockname())
        return listening.accept()[0], there


@pytest.fixture
def connected():
    """A function that connects all processes; those in `watched` get a Watch, others a channel."""

    def make(*watched):
        pairs = [tcp_pair() for _ in PEERS[1:]]
        for one in itertools.chain(*pairs):
            sockets.append(one)
        ours = {Channel(mine): peer for (mine, _), peer in zip(pairs, PEERS[1:], strict=True)}
        watches = [Watch(PEERS[0], ours)] if 0 in watched else [list(ours)]
        for (_, theirs), peer in zip(pairs, PEERS[1:], strict=True):
            channel = Channel(theirs)
            watches.append(Watch(peer, {channel: PEERS[0]}) if peer.index in watched else channel)
        alive.extend(one for one in watches if isinstance(one, Watch))
        return watches

    sockets, alive = [], []
    yield make
    for one in alive:
        one.leaving = True  # hears nothing any more
    for one in sockets:
        one.close()


def heard(channel, seconds=5.0):
    """The next line that is not a sign of life."""
    line = watch.ALIVE
    while line == watch.ALIVE:
        line = channel.read_line(seconds)
    return line


def test_the_living_take_each_other_for_alive(connected, ends, monkeypatch):
    beats, beat = [], Watch.beat
    monkeypatch.setattr(Watch, "beat", lambda self: beats.append(self) or beat(self))
    watches = connected(0, 1, 2)
    # Each makes more beats than twice the longest silence.
    wait_for(lambda: ends or min(map(beats.count, watches)) > 2 * watch.HUNG / watch.BEAT)
    assert not ends


def test_a_silent_process_is_named_by_all_and_told(connected, ends, capfd):
    _, _, hung = connected(0, 1)
    wait_for(lambda: len(ends) == 2)
    assert ends == [exits.PEER_DIED] * 2
    assert capfd.readouterr().err.count(f"{PEERS[2]} gave no sign of life for 0.5 s; start") == 2
    assert heard(hung) == [list(PEERS[2]), watch.SILENT, ""]


def test_a_silent_process_0_is_noticed_by_each_and_told(connected, ends, capfd):
    hung, *_ = connected(1, 2)
    wait_for(lambda: len(ends) == 2)
    assert capfd.readouterr().err.count(f"{PEERS[0]} gave no sign of life for 0.5 s; start") == 2
    assert all(heard(channel) == [list(PEERS[0]), watch.SILENT, ""] for channel in hung)


def test_a_process_that_was_taken_for_lost_ends_when_it_goes_on(connected, ends, capfd):
    (channel, _), _, _ = connected(1)
    channel.send([PEERS[1], watch.SILENT, ""])
    wait_for(lambda: ends)
    assert ends == [exits.PEER_DIED]
    assert "this process gave no sign of life for 0.5 s" in capfd.readouterr().err


def test_a_process_that_was_suspended_itself_blames_nobody(connected, ends, monkeypatch):
    _, mine, theirs = connected(1)
    mine.beat = lambda: None  # as if this process were not running
    time.sleep(0.7)
    del mine.beat
    mine.beat()
    assert not ends and max(mine.unheard.values()) <= 2


def test_a_closed_connection_is_a_death_unless_the_process_has_left(connected, ends, capfd):
    _, left, died = connected(0)
    left.send([PEERS[1], watch.LEFT, ""])
    left.connection.shutdown(socket.SHUT_RDWR)
    time.sleep(0.2)
    assert not ends
    died.connection.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: ends)
    assert f"{PEERS[2]} died; start" in capfd.readouterr().err


def test_an_error_is_told_to_all_and_explains_their_end(connected, ends, capfd):
    _, _, failing = connected(0, 1)
    failing.send([PEERS[2], watch.FAILED, "error: the disk is full"])
    failing.connection.shutdown(socket.SHUT_WR)
    wait_for(lambda: len(ends) == 2)
    assert ends == [exits.PEER_DIED] * 2
    line = f"{PEERS[2]} ended with an error: the disk is full"
    assert capfd.readouterr().err.splitlines() == [line, line]


def test_an_error_that_all_have_is_said_once(connected, ends, capfd):
    first, second, _ = connected(0, 1)
    for one in (second, first):
        fail = threading.Thread(target=one.fail, args=(exits.BAD_INPUT, "error: all"), daemon=True)
        fail.start()
    wait_for(lambda: len(ends) == 2)
    assert ends == [exits.BAD_INPUT] * 2 and capfd.readouterr().err == "error: all\n"


def test_the_end_of_those_who_heard_of_an_error_is_no_news(connected, ends, capfd, monkeypatch):
    monkeypatch.setattr(watch, "LINGER", 1.5)
    first, *others = connected(0)
    failing = threading.Thread(
        target=first.fail, args=(exits.BAD_INPUT, "error: ours"), daemon=True
    )
    failing.start()
    assert heard(others[0]) == [list(PEERS[0]), watch.FAILED, "error: ours"]
    wait_for(first.stopping.locked)
    for channel in others:
        channel.connection.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: ends)
    time.sleep(0.2)
    assert ends == [exits.BAD_INPUT] and capfd.readouterr().err == "error: ours\n"


def test_a_meeting_waits_for_the_last_and_may_be_repeated(connected, ends):
    watches, met = connected(0, 1, 2), []

    def come(one, pause):
        for number in range(3):
            time.sleep(pause)
            one.meet()
            met.append(number)

    threads = [
        threading.Thread(target=come, args=(one, pause), daemon=True)
        for one, pause in zip(watches, (0.0, 0.01, 0.05), strict=True)
    ]
    for thread in threads[:2]:
        thread.start()
    time.sleep(0.1)
    assert not met  # the last one is missing
    threads[2].start()
    for thread in threads:
        thread.join(5.0)
    assert met == sorted(met) and len(met) == 9 and not ends
