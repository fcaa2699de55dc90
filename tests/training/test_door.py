"""Who is let in by process 0, and what the others are told."""

import socket
import threading
import time

import pytest

from tests.cli import SERVER
from tests.training.killed import wait_for
from training import door, processes
from training.processes import Rendezvous


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(door, "HANDOVER", 0.5)
    monkeypatch.setattr(door, "QUESTION", 0.5)


@pytest.fixture
def port():
    """The port of a door for two processes, whose runtime is at port 7."""
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    door.open_door(port, 2, 7)
    return port


def test_each_id_is_let_in_once_and_again_when_its_process_has_ended(port):
    first = door.ask("127.0.0.1", port, 0, 2, "process 0 (host a, pid 1)")
    second = door.ask("127.0.0.1", port, 1, 2, "process 1 (host b, pid 2)")
    assert first[0] == second[0] == 7
    start = time.monotonic()
    with pytest.raises(ValueError) as error:
        door.ask("127.0.0.1", port, 1, 2, "process 1 (host c, pid 3)")
    assert str(error.value).startswith(
        f"--process_id=1 is in use by process 1 (host b, pid 2) of the run at 127.0.0.1:{port}; "
    )
    assert time.monotonic() - start < 5.0
    second[1].close()
    assert door.ask("127.0.0.1", port, 1, 2, "process 1 (host c, pid 3)")[0] == 7


def test_an_id_that_is_given_back_soon_is_waited_for(port):
    connection = door.ask("127.0.0.1", port, 1, 2, "the one before")[1]
    threading.Timer(0.1, connection.close).start()
    assert door.ask("127.0.0.1", port, 1, 2, "the next")[0] == 7


def test_another_number_of_processes_is_refused(port):
    with pytest.raises(ValueError, match=r"--num_processes=3 here, but 2 in process 0 at 127"):
        door.ask("127.0.0.1", port, 2, 3, "process 2")


def test_a_port_that_is_in_use_is_named(port):
    with pytest.raises(ValueError, match=f"cannot listen on port {port} of this host"):
        door.open_door(port, 2, 8)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"[1]\n", b"{}\n"])
def test_another_program_at_the_address_is_named(answer):
    def serve(listening):
        while True:
            connection, _ = listening.accept()
            connection.sendall(answer)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        port = listening.getsockname()[1]
        with pytest.raises(ValueError, match=f"127.0.0.1:{port} is answered by another program"):
            door.ask("127.0.0.1", port, 1, 2, "process 1")


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\n", b"[]\n", b'{"index": 1}\n', b"\xff\n"])
def test_a_stranger_at_the_door_keeps_nobody_out(port, said):
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(said)
        stranger.shutdown(socket.SHUT_WR)
        assert door.ask("127.0.0.1", port, 1, 2, "process 1")[0] == 7


def test_a_silent_stranger_keeps_nobody_out(port):
    with socket.create_connection(("127.0.0.1", port)):
        assert door.ask("127.0.0.1", port, 1, 2, "process 1")[0] == 7


def join(where, said, go):
    """Become a process of a run, or say why not."""
    try:
        processes.join(where)
    except ValueError as error:
        said.write_text(str(error))
        return
    said.write_text("joined")
    wait_for(go.exists)
    processes.leave()


def test_a_third_process_with_an_id_in_use_is_refused_and_harms_nobody(tmp_path):
    with socket.create_server(("", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
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


def test_process_0_is_waited_for():
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    threading.Timer(0.3, door.open_door, (port, 1, 9)).start()
    assert door.ask("127.0.0.1", port, 0, 1, "process 0")[0] == 9
