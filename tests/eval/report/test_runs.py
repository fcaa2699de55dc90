import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fewstep.eval.report import costs as COSTS
from fewstep.eval.report import runs as RUNS
from fewstep.eval.report.costs import EvaluationCounts, add_costs
from fewstep.eval.report.evaluation import load_evaluations
from fewstep.eval.report.results import save_results
from fewstep.eval.report.runs import group_by_method, load_runs
from fewstep.training.location import Location
from tests.eval.evaluated import LABELS, MEASUREMENT, evaluated_run
from tests.training.runs import small_config

PIXELS = {**MEASUREMENT, "features": "pixels", "weights": ""}
LEARNING_RATE = {"optimizer": {"schedule": "constant", "learning_rate": 1e-4}}


def test_a_run_is_read_with_its_results_images_and_cost(tmp_path):
    rows = [
        {"step": 1000, "loss": 2.0, "images_per_second": 100.0},
        {"step": 1000, "evaluate/frechet_1": 9.0},
        {"step": 3000, "loss": 1.0, "images_per_second": 400.0},
        {"step": 4000, "loss": 1.0, "images_per_second": 1.0},
    ]
    folder = evaluated_run(tmp_path / "a", "cd", 3, steps=(4, 1), rows=rows, frechet=0.5, fall=1.0)
    (run,) = load_runs([folder])
    assert (run.name, run.method, run.seed, run.folder) == (str(folder), "cd", 3, folder)
    assert list(run.results) == [1, 4]
    assert run.results[4]["metrics"]["frechet"] == 0.125
    assert run.images[1].shape == (100, 8, 8, 1) and run.images[1].dtype == np.uint8
    assert not np.array_equal(run.images[1], run.images[4])
    np.testing.assert_array_equal(run.labels, LABELS)
    assert run.trajectory.shape == (9, 8, 8, 1)
    assert run.rows == rows
    # 1,000 steps of 128 at 100 images per second, 2,000 at 400; the rest is after the evaluation.
    assert run.budget == {"images_seen": 384000, "network_evaluations": None, "seconds": 1920.0}


def test_a_run_without_a_log_has_no_seconds(tmp_path):
    (run,) = load_runs([evaluated_run(tmp_path / "a", rows=[], steps=(1,))])
    assert run.budget["seconds"] is None


def test_the_cost_of_a_run_is_that_of_the_evaluated_step(tmp_path):
    sampling = {"step": 1000}  # of 3,000 that the config has
    (run,) = load_runs([evaluated_run(tmp_path / "a", steps=(1,), sampling=sampling)])
    assert run.budget == {"images_seen": 128000, "network_evaluations": None, "seconds": 20.0}


def test_results_are_those_that_are_named(tmp_path):
    folder = tmp_path / "a"
    evaluated_run(folder, steps=(2,), sampling={"guidance_scale": 3.0})
    named = {path.stem for path in (folder / "eval").glob("*.json")}
    evaluated_run(folder, steps=(4,), sampling={"guidance_scale": 2.0})
    assert load_runs([folder])[0].sampling["guidance_scale"] == 2.0
    (run,) = load_runs([folder], ids=named)
    assert (run.sampling["guidance_scale"], list(run.results)) == (3.0, [2])


@pytest.mark.parametrize("reverse", [False, True])
def test_the_newest_file_is_the_last_whatever_the_disk_lists_first(tmp_path, monkeypatch, reverse):
    for scale in (3.0, 2.0):
        evaluated_run(tmp_path / "a", steps=(1,), sampling={"guidance_scale": scale})
    listed = Path.glob
    monkeypatch.setattr(Path, "glob", lambda *a: iter(sorted(listed(*a), reverse=reverse)))
    stamps = [e.path.stat().st_mtime_ns for e in load_evaluations(tmp_path / "a")]
    assert stamps == sorted(stamps) and len(stamps) == 2


def test_the_newest_training_step_is_shown(tmp_path):
    for step, frechet in ((3000, 0.3), (500, 0.5)):
        evaluated_run(tmp_path, steps=(1, 2), frechet=frechet, fall=0.0, sampling={"step": step})
    (run,) = load_runs([tmp_path])
    assert run.sampling["step"] == 3000
    assert {result["metrics"]["frechet"] for result in run.results.values()} == {0.3}


def test_the_newest_way_to_sample_a_step_is_shown(tmp_path):
    evaluated_run(tmp_path, steps=(1, 2), frechet=0.5, sampling={"guidance_scale": 3.0})
    evaluated_run(tmp_path, steps=(1,), frechet=0.3, sampling={"guidance_scale": 2.0})
    (run,) = load_runs([tmp_path])
    assert list(run.results) == [1]
    assert run.sampling["guidance_scale"] == 2.0


def test_the_measurement_is_one_that_all_runs_have(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    evaluated_run(a, steps=(1,), measurement=PIXELS)
    evaluated_run(a, steps=(1,), measurement=MEASUREMENT)
    evaluated_run(b, steps=(1,), measurement=PIXELS)
    assert [run.measurement for run in load_runs([a, b])] == [PIXELS, PIXELS]
    assert [run.measurement for run in load_runs([a])] == [MEASUREMENT]
    assert [run.measurement for run in load_runs([a], metric="fd-pixels-1k")] == [PIXELS]
    with pytest.raises(ValueError, match="measured by fid-50k; all were measured by fd-pixels-1k"):
        load_runs([a, b], metric="fid-50k")


def test_numbers_of_different_protocols_are_refused_with_what_differs(tmp_path):
    a = evaluated_run(tmp_path / "a", steps=(1,))
    b = evaluated_run(tmp_path / "b", steps=(1,), measurement={**MEASUREMENT, "samples": 500})
    with pytest.raises(ValueError, match=r"a and .*b were not.* differ in samples \(1000 / 500\)"):
        load_runs([a, b])


def test_runs_that_were_not_measured_have_pictures(tmp_path):
    a = evaluated_run(tmp_path / "a", steps=(1,))
    b = evaluated_run(tmp_path / "b", steps=(1,), measurement={})
    measured, shown = load_runs([a, b])
    assert measured.measurement == MEASUREMENT
    assert shown.measurement == {} and shown.results[1]["metrics"] == {}
    assert len(shown.images[1]) == 100
    assert [run.measurement for run in load_runs([b])] == [{}]


def test_bad_folders_are_named_with_a_remedy(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        load_runs([])
    with pytest.raises(ValueError, match="is no run"):
        load_runs([tmp_path])
    folder = evaluated_run(tmp_path / "a", steps=())
    with pytest.raises(ValueError, match=r"not been evaluated; run --mode=evaluate --workdir=.*/a"):
        load_runs([folder])
    evaluated_run(folder, steps=(1,))
    (path,) = (folder / "eval").glob("*.json")
    whole, samples = path.read_text(), path.with_suffix(".npz").read_bytes()
    path.write_text(whole[:50])
    with pytest.raises(ValueError, match="is not JSON"):
        load_runs([folder])
    path.write_text(json.dumps({"by_steps": {}}))
    with pytest.raises(ValueError, match=r"lacks id, data, .*protocol, metrics\); delete it"):
        load_runs([folder])
    path.write_text(whole)
    path.with_suffix(".npz").write_bytes(samples[:99])
    with pytest.raises(ValueError, match=r"npz cannot be read"):
        load_runs([folder])
    path.with_suffix(".npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"npz does not exist"):
        load_runs([folder])


def test_one_strange_result_is_left_out_with_a_warning_that_names_it(tmp_path, capsys):
    folder = evaluated_run(tmp_path / "a", steps=(1, 2))
    first, second = sorted((folder / "eval").glob("*.json"))
    first.write_text("{}")
    (run,) = load_runs([folder])
    assert len(run.results) == 1
    said = capsys.readouterr().err
    assert f"warning: {first} is no result" in said and "left out" in said
    with pytest.raises(ValueError, match="is no result"):
        load_runs([folder], ids={first.stem, second.stem})  # asked for by its name
    second.write_text("[]")
    with pytest.raises(ValueError, match="is no result|holds no JSON object"):
        load_runs([folder])


@pytest.fixture
def evaluated(tmp_path):
    """A run's folder, its only result, and the samples of this result."""
    folder = evaluated_run(tmp_path / "a", steps=(1,))
    (path,) = (folder / "eval").glob("*.json")
    return folder, path, path.with_suffix(".npz")


def test_an_edited_number_is_noticed(evaluated):
    folder, path, _ = evaluated
    result = json.loads(path.read_text())
    result["metrics"]["frechet"] /= 2
    save_results(path, result)
    with pytest.raises(
        ValueError, match=r"\.npz was made from something else: result .* delete it"
    ):
        load_runs([folder])


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 2), ("step", 4000), ("guidance_scale", 2.0), ("seed", 1)]
)
def test_a_protocol_of_another_result_is_noticed(evaluated, field, value):
    folder, path, _ = evaluated
    result = json.loads(path.read_text())
    result["protocol"]["sampling"][field] = value
    save_results(path, result)
    with pytest.raises(
        ValueError, match=r"json holds the result .*, but the protocol of .* delete"
    ):
        load_runs([folder])


def test_a_renamed_result_is_noticed(evaluated):
    folder, path, samples = evaluated
    path.rename(path.with_stem("fd-classifier-1k-000000000000"))
    samples.rename(samples.with_stem("fd-classifier-1k-000000000000"))
    with pytest.raises(ValueError, match="0000.json holds the result .*, but the protocol"):
        load_runs([folder])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"method": "ect"}, "method ect, not cd"),
        ({"seed": 1}, "seed 1, not 0"),
        ({"config": {"data": {"name": "cifar10"}}}, "data.name digits, not cifar10"),
    ],
)
def test_a_result_of_another_run_is_noticed(tmp_path, other, message):
    own = evaluated_run(tmp_path / "a", "cd", 0, steps=())
    foreign = evaluated_run(tmp_path / "b", **{"method": "cd", "seed": 0, "steps": (1,), **other})
    if "config" in other:
        own, foreign = foreign, own
    else:
        (foreign / "eval").rename(own / "eval")
    with pytest.raises(ValueError, match=rf"json is of another run \({message}\); delete it"):
        load_runs([own])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((100, 8, 8, 1))}, "x is float64"),
        ({"x": np.zeros((100, 8, 8), np.uint8)}, r"x is uint8 \[100, 8, 8\]"),
        ({"x": np.zeros((100, 8, 8, 4), np.uint8)}, "x has no images of 1 or 3"),
        ({"x": np.zeros((0, 8, 8, 1), np.uint8)}, "x has no images"),
        ({"y": np.zeros(99, int)}, r"y is int64 \[99\]"),
        ({"y": np.zeros(100)}, "y is float64"),
        ({"way": np.zeros((9, 8))}, "way is float64"),
        ({"y": None}, "lacks y"),
    ],
)
def test_samples_of_another_kind_are_refused(evaluated, change, message):
    folder, _, samples = evaluated
    with np.load(samples) as file:
        arrays = dict(file) | change
    arrays = {name: array for name, array in arrays.items() if array is not None}
    np.savez(samples, **arrays)
    with pytest.raises(
        ValueError, match=r"\.npz was changed after it was written; delete it and fd-"
    ):
        load_runs([folder])
    del arrays["seal"]
    np.savez(samples, **arrays)
    with pytest.raises(ValueError, match=rf"\.npz.*{message}.*; delete it and fd-"):
        load_runs([folder])


def test_samples_of_an_older_version_are_shown(evaluated, capsys):
    folder, path, samples = evaluated
    with np.load(samples) as file:
        np.savez(samples, **{name: file[name] for name in ("x", "y", "way")})
    (run,) = load_runs([folder])
    assert len(run.images[1]) == 100
    assert f"warning: {path.parent} has a file without a seal" in capsys.readouterr().err


def test_images_of_different_shapes_are_refused(tmp_path):
    a, b = evaluated_run(tmp_path / "a", steps=(1,)), evaluated_run(tmp_path / "b", steps=(1,))
    (path,) = (b / "eval").glob("*.npz")
    np.savez(path, x=np.zeros((5, 4, 4, 3), np.uint8), y=np.zeros(5, int), way=())
    with pytest.raises(ValueError, match=r"different shapes.*\(8, 8, 1\).*\(4, 4, 3\)"):
        load_runs([a, b])


def groups_of(*folders):
    """Names of the folders by heading."""
    groups = group_by_method(load_runs(folders))
    return {name: [run.folder.name for run in runs] for name, runs in groups.items()}


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path):
    folders = [
        evaluated_run(tmp_path / "s1", "cd", 1, steps=(1, 2)),
        evaluated_run(tmp_path / "other", "ect", 0, steps=(1, 2)),
        evaluated_run(tmp_path / "s0", "cd", 0, steps=(1, 2)),
    ]
    assert groups_of(*folders) == {"cd": ["s0", "s1"], "ect": ["other"]}


@pytest.mark.parametrize(
    ("difference", "headings"),
    [
        ({"sampling": {"guidance_scale": 2.5}}, ["cd, guidance 1", "cd, guidance 2.5"]),
        ({"sampling": {"step": 1000}}, ["cd, step 3000", "cd, step 1000"]),
        ({"sampling": {"network": "network"}}, ["cd, ema_0.999", "cd, network"]),
        ({"sampling": {"sampler": "euler"}}, ["cd, heun", "cd, euler"]),
        ({"steps": (1,)}, ["cd, sampling steps 1, 2", "cd, sampling steps 1"]),
        (
            {"sampling": {"training_data": "0b5e"}},
            ["cd, training data 77aa", "cd, training data 0b5e"],
        ),
        (
            {"config": LEARNING_RATE},
            ["cd, optimizer.learning_rate 0.001", "cd, optimizer.learning_rate 0.0001"],
        ),
    ],
)
def test_a_heading_names_what_differs(tmp_path, difference, headings):
    data = {"training_data": "77aa"}
    a = evaluated_run(tmp_path / "a", "cd", 0, steps=(1, 2), sampling=data)
    difference = {**difference, "sampling": {**data, **difference.get("sampling", {})}}
    b = evaluated_run(tmp_path / "b", "cd", 1, **{"steps": (1, 2), **difference})
    assert groups_of(a, b) == {headings[0]: ["a"], headings[1]: ["b"]}


def test_what_may_change_when_a_run_goes_on_does_not_set_it_apart(tmp_path):
    a = evaluated_run(tmp_path / "a", "cd", 0, steps=(1,))
    b = evaluated_run(tmp_path / "b", "cd", 1, steps=(1,), config={"log": {"every": 7}})
    assert groups_of(a, b) == {"cd": ["a", "b"]}


def test_a_field_that_an_older_record_lacks_does_not_set_it_apart(tmp_path):
    a = evaluated_run(tmp_path / "a", "cd", 0, steps=(1,))
    b = evaluated_run(tmp_path / "b", "cd", 1, steps=(1,), config={"newer": {"field": 3}})
    assert groups_of(a, b) == {"cd": ["a", "b"]}


def test_an_older_record_counts_as_what_runs_did_then(tmp_path):
    older = evaluated_run(
        tmp_path / "older", "shortcut", 0, steps=(1,), config={"objective": {"name": "shortcut"}}
    )
    alike, other = (
        evaluated_run(
            tmp_path / name,
            "shortcut",
            seed,
            steps=(1,),
            config={
                "objective": {"name": "shortcut", "distance": {"name": name, "c": None}},
                "data": {"name": "digits", "decoding": 2, "label_shares": "equal"},
            },
        )
        for seed, name in enumerate(("squared_l2", "l1"), start=1)
    )
    assert groups_of(older, other, alike) == {
        "shortcut, objective.distance.name squared_l2": ["older", "squared_l2"],
        "shortcut, objective.distance.name l1": ["l1"],
    }


def test_an_older_record_does_not_join_what_differs(tmp_path):
    older = evaluated_run(tmp_path / "older", "cd", 0, steps=(1,))
    a, b = (
        evaluated_run(tmp_path / name, "cd", seed, steps=(1,), sampling={"training_data": name})
        for seed, name in enumerate("ab", start=1)
    )
    groups = groups_of(older, a, b)
    assert sorted(groups.values()) == [["b"], ["older", "a"]]


def test_students_of_their_own_seeds_teacher_are_one_group(tmp_path):
    students = []
    for seed in (0, 1, 2):
        # The last teacher is another one; its student has a group of its own.
        fields = {"optimizer": {"schedule": "constant", "learning_rate": 1e-3 / (1 + seed // 2)}}
        teacher = evaluated_run(tmp_path / f"t{seed}", "edm", seed, steps=(), config=fields)
        taught = {"teacher": f"{teacher}@3000"}
        students.append(evaluated_run(tmp_path / f"{seed}", "cd", seed, steps=(1,), config=taught))
    name = "cd, teacher.optimizer.learning_rate"
    assert groups_of(*students) == {f"{name} 0.001": ["0", "1"], f"{name} 0.0005": ["2"]}
    assert groups_of(*students[:2]) == {"cd": ["0", "1"]}
    for seed in (0, 1):
        (tmp_path / f"t{seed}" / "config.json").unlink()
    assert groups_of(*students[:2]) == {
        f"cd, teacher {tmp_path}/t{seed}@3000": [f"{seed}"] for seed in (0, 1)
    }


def test_teachers_are_looked_for_where_the_runs_were_moved(tmp_path, monkeypatch):
    students = []
    for seed in (0, 1):
        evaluated_run(tmp_path / f"t{seed}", "edm", seed, steps=())
        taught = {"teacher": f"/gone/t{seed}@3000"}
        students.append(evaluated_run(tmp_path / f"{seed}", "cd", seed, steps=(1,), config=taught))
    moved = lambda run, asked: Location(tmp_path / f"t{run.name}", 3000)
    for module in (RUNS, COSTS):
        monkeypatch.setattr(module, "find_teacher", moved)
    assert groups_of(*students) == {"cd": ["0", "1"]}
    (run,) = add_costs(load_runs(students[:1]))
    assert run.total["images_seen"] == 2 * 128 * 3000


def test_students_of_other_steps_of_a_teacher_are_no_group(tmp_path):
    teacher = evaluated_run(tmp_path / "edm", "edm", 0, steps=(1,))
    students = [
        evaluated_run(
            tmp_path / f"cd_{seed}", "cd", seed, steps=(1,), config={"teacher": f"{teacher}@{step}"}
        )
        for seed, step in enumerate((500, 500, 3000))
    ]
    groups = group_by_method(load_runs(students))
    assert sorted([run.seed for run in runs] for runs in groups.values()) == [[0, 1], [2]]


def test_a_run_with_a_teacher_is_not_one_from_scratch(tmp_path):
    teacher = evaluated_run(tmp_path / "teacher", "edm", 0, steps=(1,))
    fields = {"teacher": str(teacher)}
    taught = evaluated_run(tmp_path / "taught", "ect", 1, steps=(1,), config=fields)
    alone = evaluated_run(tmp_path / "alone", "ect", 0, steps=(1,), config={"teacher": ""})
    assert sorted(groups_of(taught, alone).values()) == [["alone"], ["taught"]]


def test_the_same_seed_twice_is_no_group(tmp_path):
    a, b = (evaluated_run(tmp_path / name, "cd", 0, steps=(1,)) for name in "ab")
    assert groups_of(a, b) == {f"cd ({a})": ["a"], f"cd ({b})": ["b"]}


def test_evaluations_of_a_sample_are_those_of_the_solver_that_made_it(tmp_path):
    config = small_config("edm", **{"objective.solver.name": "heun"})
    counts = EvaluationCounts()
    of_a_later_version = ("unheard_of", {})
    for sampler, expected in (
        ("heun", {1: 1, 4: 7}),
        ("euler", {1: 1, 4: 4}),
        of_a_later_version,
    ):
        sampling = {"guidance_scale": 1.0, "sampler": sampler}
        run = SimpleNamespace(results={1: {}, 4: {}}, sampling=sampling, name=str(tmp_path))
        assert counts.of_samples(run, config) == expected
