import argparse
import json
import sys

import pytest

from bench import entrants, race, race_table
from bench.cases import CASES
from bench.peers import OURS, PEERS
from bench.race_table import Cost, Result, Start, ratio

PROGRAM = """HloModule step, num_partitions=2

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %total = f32[] add(%a, %b)
}

ENTRY %main (x: f32[8,4]) -> f32[8,8] {
  %x = f32[8,4]{1,0} parameter(0)
  %y = f32[4,8]{1,0} parameter(1)
  %sum = f32[4,8]{1,0} all-reduce(%y), replica_groups={{0,1}}, to_apply=%add
  ROOT %dot = f32[8,8]{1,0} dot(%x, %sum), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


def result(peer, times, cost=Cost(), work="flow_matching"):  # noqa: B008
    return Result(work, peer, times, cost)


def test_a_ratio_is_the_median_of_the_rounds_with_their_range():
    # In the second round the machine was slow for both: the ratio of medians would be 1.5 / 2.
    found = ratio([1.0, 9.0, 1.5], [2.0, 10.0, 1.0])
    assert found == (0.9, 0.5, 1.5)
    assert str(found) == "0.90 (0.50 to 1.50)"
    with pytest.raises(ValueError):
        ratio([1.0, 2.0], [1.0])


def test_times_are_compared_with_ours_of_the_same_work():
    rows = race_table.time_rows(
        [
            result(OURS, [0.010, 0.012, 0.011]),
            result("dew", [0.010, 0.010, 0.010]),
            result("torch", [0.020, 0.020, 0.020]),
            result(OURS, [0.002] * 3, work="sample_1"),
            result("dew", [0.004] * 3, work="sample_1"),
        ]
    )
    assert rows[1:] == [
        ["flow_matching", "Dew", "11.0", "10.0", "1.10 (1.00 to 1.20)", "1.00, missed"],
        ["flow_matching", "PyTorch", "11.0", "20.0", "0.55 (0.50 to 0.60)", "-"],
        ["sample_1", "Dew", "2.0", "4.0", "0.50 (0.50 to 0.50)", "1.00, met"],
    ]


def test_a_cost_is_read_from_the_program_and_its_part_on_several_devices():
    reply = {"hlo": PROGRAM, "temporary": 2**20, "donated": 50, "state": 100}
    cost = race_table.read_cost(reply, {"hlo": PROGRAM})
    assert cost == Cost(2 * 8 * 8 * 4, 2**20, 0.5, (1, 4 * 4 * 8))
    assert race_table.read_cost({**reply, "state": 0}) == Cost(512, 2**20, None, None)
    assert race_table.read_cost({"flops": 7}) == Cost(flops=7)
    rows = race_table.program_rows([result("dew", [1.0], cost), result("torch", [1.0])])
    assert rows[1][2:] == ["0.000", "1.0", "50%", "1: 0.00 MiB"]
    assert rows[2][2:] == ["-"] * 4


def test_tables_are_aligned_as_text_and_valid_markdown():
    rows = race_table.start_rows(
        [Start("sct", OURS, 12.34, 5.0), Start("sct", f"{OURS}:again", 9.0, 5)]
    )
    assert race_table.as_text(rows).splitlines() == [
        "work  program          cold, CPU s  warm, CPU s",
        "sct   Fewstep                 12.3          5.0",
        "sct   Fewstep (again)          9.0          5.0",
    ]
    assert race_table.as_markdown(rows).splitlines()[:3] == [
        "| work | program | cold, CPU s | warm, CPU s |",
        "|---|---|---|---|",
        "| sct | Fewstep | 12.3 | 5.0 |",
    ]


def test_peers_have_a_file_and_methods_that_are_raced():
    trained = {work["method"] for work in race.WORKS.values() if work["kind"] == "train"}
    for name, peer in PEERS.items():
        assert (entrants.ROOT / f"{peer.module.replace('.', '/')}.py").exists(), name
        assert set(peer.methods) <= trained, name
    assert trained <= set(PEERS[OURS].methods)
    assert {work["case"] for work in race.WORKS.values()} <= set(CASES)
    assert not race.has(PEERS["torch"], "shortcut")
    assert race.has(PEERS["torch"], "sample_4")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--peer=drew"], "'drew' is not one of fewstep.*did you mean 'dew'"),
        (["--peer=dew"], "dew is not installed here.*--peer=dew:/path/to/python"),
        ([f"--peer=dew:{sys.executable}"], "cannot import dew"),
        (["--peer=dew:/no/such/python"], "cannot run /no/such/python"),
        (["--peer=fewstep", "--peer=fewstep"], "takes part twice"),
        (["--works=sample_3"], "--works='sample_3' is not one of"),
        (["--rounds=0"], "--rounds=0 must be at least 1"),
    ],
)
def test_bad_input_is_named_before_any_work(argv, message, tmp_path, monkeypatch):
    monkeypatch.setattr(entrants.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(race, "Racer", None)
    with pytest.raises(SystemExit, match=message):
        race.main([*argv, f"--out={tmp_path}"])


class Fake:
    """A racer whose runs take seconds from a list, and that records the order of runs."""

    def __init__(self, name, seconds, order):
        self.entrant = entrants.Entrant(name, PEERS[OURS], "")
        self.seconds, self.order = seconds, order

    def ask(self, order, work, count):
        self.order.append((self.entrant.name, count))
        return {"cpu": count * self.seconds}


def test_racers_take_turns_forwards_and_backwards():
    order = []
    racers = [Fake("a", 0.1, order), Fake("b", 5.0, order)]
    times = race.take_turns(racers, "sample_1", rounds=3, seconds=0.4)
    assert times == {"a": [pytest.approx(0.1)] * 3, "b": [5.0] * 3}
    # One run each sets the number of runs in a turn.
    assert order[:2] == [("a", 1), ("b", 1)]
    assert order[2:] == [("a", 4), ("b", 1), ("b", 1), ("a", 4), ("a", 4), ("b", 1)]


@pytest.mark.some_days(2)
def test_ours_races_ours_and_everything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(race, "pin", lambda core: "not pinned")
    race.main(
        ["--scale=smoke", "--works=sample_1", "--peer=fewstep", "--rounds=2", "--seconds=0.01"]
        + [f"--out={tmp_path}"]
    )
    record = json.loads((tmp_path / "race.json").read_text())
    ours, again = record["results"]
    assert [len(one["times"]) for one in (ours, again)] == [2, 2]
    assert min(ours["times"]) > 0.0
    assert ours["cost"] == again["cost"]
    assert ours["cost"]["flops"] > 1e6
    assert ours["cost"]["temporary"] > 1000
    page = (tmp_path / "race.md").read_text()
    assert "smoke scale, 2 rounds, not pinned" in page
    assert "| sample_1 | Fewstep (again) |" in page


def test_a_peer_that_fails_says_so(tmp_path):
    entrant = entrants.Entrant(
        "broken", PEERS[OURS]._replace(module="no_such_module"), sys.executable
    )
    with (
        entrants.Racer(entrant, {}, tmp_path / "log") as racer,
        pytest.raises(entrants.PeerError) as error,
    ):
        racer.process.stdin.close = lambda: None
        racer.ask("prepare", "sample_1", spec={}, count=0)
    assert "broken: its process ended" in str(error.value)


def test_the_scales_fit_the_networks():
    for name, scale in race.SCALES.items():
        spec = race.spec_of("sample_4", scale)
        assert spec["side"] % spec["patch"] == 0, name
        assert spec["width"] % spec["heads"] == 0, name
        assert spec["steps"] == 4
    assert argparse.Namespace(**race.spec_of("sct", race.SCALES["digits"])).width == 96
