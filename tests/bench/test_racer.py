import io
import os

import pytest

from bench import racer
from bench.racer import Work, replies_to


def orders(*names, **fields):
    return [{"order": name, "work": "w", "spec": {"n": 3}, **fields} for name in names]


def test_orders_are_carried_out_and_timed(monkeypatch):
    clock, done = [100.0], []
    monkeypatch.setattr(racer, "cpu_seconds", lambda: clock[0])

    def prepare(spec):
        clock[0] += 10.0

        def run():
            clock[0] += spec["n"]
            return "result"

        return Work(run, done.append, lambda: {"flops": 5})

    asked = [
        *orders("prepare", count=1),
        *orders("run", count=2),
        *orders("cost"),
    ]
    replies = [*replies_to(iter(asked), prepare)]
    # The first counts from the start of the process.
    assert replies == [{"cpu": 113.0}, {"cpu": 6.0}, {"flops": 5}]
    assert done == ["result"] * 3


def test_a_failure_is_a_reply(monkeypatch, tmp_path):
    replies = tmp_path / "replies"
    with replies.open("w"):
        monkeypatch.setattr(racer.os, "dup", lambda fd: os.open(replies, os.O_WRONLY))
        monkeypatch.setattr(racer.os, "dup2", lambda old, new: None)
        monkeypatch.setattr(racer.sys, "stdin", io.StringIO('{"order": "cost", "work": "w"}\n'))
        with pytest.raises(SystemExit) as stop:
            racer.serve(lambda spec: None)
    assert stop.value.code == 1
    assert replies.read_text() == '{"error": "KeyError: \'w\'"}\n'
