import csv
from pathlib import Path

import numpy as np
import pytest

from fewstep.data.spaces.pixels import pixel_space
from fewstep.eval.report.runs import EvaluatedRun
from fewstep.eval.report.spreadsheet import summary_rows, text_table, write_csv


def seed_run(seed, frechet, recall=0.5, seconds=10.0):
    result = {"id": f"fd-pixels-1k-{seed}", "metric": "fd-pixels-1k"}
    results = {
        steps: {**result, "metrics": {"frechet": frechet / steps, "recall": recall}}
        for steps in (1, 4)
    }
    nothing = np.empty(0)
    budget = {"images_seen": 100, "network_evaluations": None, "seconds": seconds}
    return EvaluatedRun(
        name="",
        method="cd",
        seed=seed,
        folder=Path(f"runs/{seed}"),
        results=results,
        rows=[],
        images={},
        labels=nothing,
        trajectory=nothing,
        space=pixel_space((8, 8, 1)),
        budget=budget,
        config={},
    )


GROUPS = {"cd": [seed_run(0, 2.0), seed_run(1, 4.0, seconds=None)], "edm": [seed_run(0, 8.0)]}


def test_a_row_is_the_mean_over_seeds_with_its_spread():
    first, second, *others = summary_rows(GROUPS)
    assert (first["method"], first["steps"], first["seeds"]) == ("cd", 1, 2)
    assert (first["frechet"], first["frechet_least"]) == (3.0, 2.0)
    assert (first["frechet_low"], first["frechet_high"]) == (2.0, 4.0)
    assert (second["steps"], second["frechet"]) == (4, 0.75)
    assert (first["recall"], first["seconds"], first["images_seen"]) == (0.5, 10.0, 100)
    assert "network_evaluations" not in first
    assert all("frechet_low" not in row for row in others)


def test_the_file_has_every_column(tmp_path):
    write_csv(tmp_path / "table.csv", GROUPS)
    with (tmp_path / "table.csv").open() as file:
        read = list(csv.DictReader(file))
    means = [row for row in read if row["seed"] == "mean"]
    assert [float(row["frechet"]) for row in means] == [3.0, 0.75, 8.0, 2.0]
    assert means[2]["frechet_low"] == "" and read[0]["metric"] == "fd-pixels-1k"
    # Each seed follows the mean of its method, at its number of steps.
    assert [(row["seed"], float(row["frechet"])) for row in read[:3]] == [
        ("mean", 3.0),
        ("0", 2.0),
        ("1", 4.0),
    ]
    assert {row["seeds"] for row in read[1:3]} == {"1"} and len(read) == 10


def test_the_text_is_aligned_and_names_the_metric():
    title, *lines = text_table(GROUPS).splitlines()
    assert title == "Frechet distance: fd-pixels-1k"
    assert len({len(line) for line in lines}) == 1
    expected = ["cd", "1", "2", "3.000", "range", "2.000", "4.000", "2.000", "0.500", "100", "10"]
    assert lines[1].split() == expected
    assert lines[3].split()[3:8] == ["8.000", "-", "-", "-", "8.000"]


def test_a_cost_with_the_teacher_is_that_of_runs_without_one_where_they_have_none():
    own = {"images_seen": 100, "network_evaluations": None, "seconds": 10.0}
    student = seed_run(0, 1.0)._replace(
        budget=own, total={**own, "images_seen": 300}, evaluations={1: 1, 4: 7}, added=True
    )
    first, second = summary_rows({"cd": [student]})
    assert (first["images_seen"], first["images_seen_with_teacher"]) == (100, 300)
    assert "network_evaluations_with_teacher" not in first
    assert (first["evaluations"], second["evaluations"], first["added"]) == (1, 7, "teacher")
    assert "images_seen_with_teacher" not in summary_rows(GROUPS)[0]


@pytest.mark.parametrize("column", ["network evaluations", "agreement"])
def test_columns_without_values_are_left_out(column):
    assert column not in text_table(GROUPS)
