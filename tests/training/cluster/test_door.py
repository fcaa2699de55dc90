"""Whom process 0 lets in, and what it tells the others."""

import socket
import threading
import time

import pytest

from fewstep.training.cluster import door, joining, processes
from fewstep.training.cluster.channel import Channel, Peer, process_names
from fewstep.training.cluster.clusters import Rendezvous
from fewstep.training.cluster.door import InUseError, Meeting, MissingError
from tests.cli import SERVER
from tests.training.killed import wait_for

HOST = "127.0.0.1"
FIRST, SECOND, OTHER = Peer(0, "a", 1), Peer(1, "b", 2), Peer(1, "c", 3)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(door, "HANDOVER", 0.5)
    monkeypatch.setattr(door, "QUESTION", 0.5)
    monkeypatch.setattr(door, "STATUS", 0.1)
    monkeypatch.setattr(door, "NEWS", 0.2)


@pytest.fixture
def meeting():
    """A meeting of two processes, before anybody has come."""
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    return Meeting([HOST], port, 2, 60.0)


def coming(meeting, peer, **also):
    """Let a process come to the meeting. Returns a function that waits for its result or error."""
    found = []

    def come():
        try:
            found.append(door.meet(meeting, peer, **also))
        except (ValueError, MissingError) as error:
            found.append(error)

    thread = threading.Thread(target=come, daemon=True)
    thread.start()

    def outcome():
        thread.join(30.0)
        return found[0]

    return outcome


def knock(meeting, peer):
    """The connection of a process that is let in and waits."""
    return door.enter(meeting, peer, time.monotonic() + 10.0)


def test_all_meet_and_are_connected_to_process_0(meeting):
    meeting = meeting._replace(count=3, key="secret")
    others = [coming(meeting, Peer(i, "b", i)) for i in (1, 2)]
    runtime, inside = coming(meeting, FIRST, runtime=7)()
    assert runtime == 7 and set(inside.values()) == {Peer(1, "b", 1), Peer(2, "b", 2)}
    for index, other in enumerate(others, start=1):
        port, channels = other()
        assert port == 7 and list(channels.values()) == [FIRST]
        (channel,) = channels
        channel.send(index)
    assert {peer.index: channel.read_line(5.0) for channel, peer in inside.items()} == {1: 1, 2: 2}


def test_a_missing_process_is_named_and_given_up(meeting, capfd):
    meeting = meeting._replace(count=4, limit=0.7)
    second, first = coming(meeting, SECOND), coming(meeting, FIRST)
    for outcome in (first(), second()):
        assert isinstance(outcome, MissingError)
        assert f"processes 2, 3 of 4 did not come to {HOST}:{meeting.port}" in str(outcome)
    lines = capfd.readouterr().err.splitlines()
    # Earlier lines may also name process 1.
    assert lines[-1].startswith("waiting for processes 2, 3 of 4 (")


def test_a_missing_process_0_is_named_and_given_up(meeting, capfd):
    outcome = coming(meeting._replace(limit=0.5), SECOND)()
    assert isinstance(outcome, MissingError)
    assert f"no process 0 at {HOST}:{meeting.port} in 0.5 s" in str(outcome)
    assert f"waiting for process 0 at {HOST}:{meeting.port} (0 s)" in capfd.readouterr().err


def test_a_process_0_that_falls_silent_or_ends_is_noticed(meeting, monkeypatch):
    with socket.create_server((HOST, meeting.port)) as listening:
        second = coming(meeting._replace(limit=1.0), SECOND)
        channel = Channel(listening.accept()[0])
        channel.send({"missing": [0], "waited": 0.0})
        channel.close()
        monkeypatch.setattr(door, "SILENCE", 0.2)
        channel = Channel(listening.accept()[0])  # it comes again
        channel.send({"missing": [0], "waited": 0.0})
        assert "gave no sign of life for 0.2 s" in str(second())


def test_a_process_that_ends_while_it_waits_is_missing_again(meeting):
    first = coming(meeting._replace(count=3), FIRST, runtime=7)
    channel = knock(meeting._replace(count=3), SECOND)
    channel.close()  # before the last process comes, or all have come
    third = coming(meeting._replace(count=3), Peer(2, "b", 9))
    again = coming(meeting._replace(count=3), OTHER)
    assert first()[0] == again()[0] == third()[0] == 7
    assert OTHER in first()[1].values()


def test_an_id_in_use_is_refused_and_one_given_back_soon_is_waited_for(meeting, monkeypatch):
    meeting = meeting._replace(count=3)
    first = coming(meeting, FIRST)
    channel = knock(meeting, SECOND)
    start = time.monotonic()
    with pytest.raises(InUseError) as error:
        door.attend(meeting, OTHER)
    assert str(error.value).startswith(f"--process_id=1 is in use by {SECOND} of the run at {HOST}")
    assert time.monotonic() - start < 5.0
    # Time enough for threads that a busy machine delays.
    monkeypatch.setattr(door, "HANDOVER", 10.0)
    monkeypatch.setattr(door, "QUESTION", 10.0)
    let_in, wait_inside = threading.Event(), door.wait_inside

    def note_the_other(meeting, me, channel):
        if me == OTHER:
            let_in.set()
        return wait_inside(meeting, me, channel)

    monkeypatch.setattr(door, "wait_inside", note_the_other)
    threading.Timer(0.1, channel.close).start()
    other = coming(meeting, OTHER)
    assert let_in.wait(30.0)
    # The last process comes now. Before, all would have come while the id was still in use.
    third = coming(meeting, Peer(2, "b", 9))
    assert other()[0] == third()[0] == first()[0] == 0


def test_who_comes_when_a_run_ends_waits_for_the_next(meeting):
    others = [coming(meeting, peer) for peer in (FIRST, SECOND)]
    (channel,) = others[1]()[1]
    with pytest.raises(InUseError):
        door.attend(meeting, OTHER)
    channel.close()
    assert door.enter(meeting, OTHER, time.monotonic() + 10.0) is None


def test_another_number_of_processes_is_refused(meeting, capfd):
    coming(meeting, FIRST)
    with pytest.raises(
        ValueError, match=r"--num_processes=3 in process 2 \(host b, pid 2\), but 2"
    ):
        door.attend(meeting._replace(count=3), Peer(2, "b", 2))
    wait_for(lambda: "was refused: --num_processes=3" in capfd.readouterr().err)
    door.attend(meeting, SECOND)  # ends the meeting, whose thread would print into other tests


def test_a_port_that_is_in_use_is_named(meeting):
    named = pytest.raises(ValueError, match=f"cannot listen on port {meeting.port} of this host")
    with socket.create_server(("", meeting.port)), named:
        door.meet(meeting, FIRST)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"[1]\n", b"{}\n"])
def test_another_program_at_the_address_is_named(answer, meeting):
    def serve(listening):
        while True:
            connection, _ = listening.accept()
            connection.sendall(answer)
            connection.close()

    with socket.create_server((HOST, meeting.port)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        with pytest.raises(ValueError, match=f"{meeting.port} is answered by another program"):
            door.attend(meeting, SECOND)


STRANGERS = [b"", b"GET / HTTP/1.1\n", b"[]\n", b'{"index": 1}\n', b"\xff\n", b"x" * 5000]


@pytest.mark.parametrize("said", [*STRANGERS, b'{"peer": [1, "x", 9], "count": 2, "key": "?"}\n'])
def test_a_stranger_at_the_door_keeps_nobody_out(meeting, said):
    first = coming(meeting, FIRST, runtime=7)
    with door.connect(meeting, time.monotonic() + 10.0).connection as stranger:
        stranger.sendall(said)
        stranger.shutdown(socket.SHUT_WR)
        assert door.attend(meeting, SECOND)[0] == first()[0] == 7


def test_a_silent_stranger_keeps_nobody_out(meeting):
    coming(meeting, FIRST, runtime=7)
    with door.connect(meeting, time.monotonic() + 10.0).connection:
        assert door.attend(meeting, SECOND)[0] == 7


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ([3], "process 3"),
        ([3, 5], "processes 3, 5"),
        (range(1, 20), "processes 1, 2, 3, 4, 5, 6, 7, 8 and 11 more"),
    ],
)
def test_many_processes_are_counted(indices, words):
    assert process_names(indices) == words


def join(where, said, go):
    """Become a process of a run, or write down the error."""
    try:
        joining.join(where)
    except ValueError as error:
        said.write_text(str(error))
        return
    said.write_text("joined")
    wait_for(go.exists)
    processes.leave()


def test_a_third_process_with_an_id_in_use_is_refused_and_harms_nobody(tmp_path):
    with socket.create_server(("", 0)) as free:
        address = f"{HOST}:{free.getsockname()[1]}"
    go, said = tmp_path / "go", [tmp_path / f"said_{i}" for i in range(3)]
    started = []
    for path, index in zip(said, (0, 1, 1), strict=True):
        where = Rendezvous(address, 2, index)
        started.append(SERVER.Process(target=join, args=(where, path, go)))
        started[-1].start()
        if len(started) == 2:
            wait_for(lambda: all(path.exists() for path in said[:2]))
    started[2].join(60.0)
    assert "--process_id=1 is in use by process 1 (host " in said[2].read_text()
    assert all(process.is_alive() for process in started[:2])
    go.touch()
    for process in started:
        process.join(60.0)
    assert [process.exitcode for process in started] == [0, 0, 0]
    assert [path.read_text() for path in said[:2]] == ["joined", "joined"]
