import json

import pytest

from bench import figures
from fewstep.eval.metrics.protocol import Protocol
from fewstep.training.storage.identity import Identity, write_identity
from tests.eval.evaluated import MEASUREMENT, REAL, evaluated_run


def run(name, seed=0, passes=3.0, before=None, distance=8.0):
    """Kept figures of a run of 100 images a step, whose distance halves from step 10 to 20."""
    evaluations = [
        {
            "step": step,
            "network": "ema_0.999",
            "sampling_steps": steps,
            "metrics": {"frechet": distance * 10 / step / steps, "agreement": 0.5},
        }
        for step in (10, 20)
        for steps in (1, 4)
    ]
    return {
        "name": name,
        "data": "digits",
        "seed": seed,
        "batch_size": 100,
        "passes_per_image": passes,
        "teachers": before,
        "evaluations": evaluations,
    }


def rows(text):
    """The cells of a table's rows below its headings, by method."""
    table = [line for line in text.splitlines() if line.startswith("|")]
    lines = [line.strip("| ").split(" | ") for line in table[2:]]
    return {name.strip("`"): cells for name, *cells in lines}


def test_a_row_is_the_last_evaluation_within_the_budget():
    runs = [run("shortcut"), run("cd", distance=6.0)]
    assert rows(figures.table(runs, "images", 1999)) == {
        "shortcut": ["1", "1,000", "8.000, 0.500", "2.000, 0.500"],
        "cd": ["1", "1,000", "6.000, 0.500", "1.500, 0.500"],
    }
    assert rows(figures.table(runs, "images", 2000))["cd"][1:3] == ["2,000", "3.000, 0.500"]


def test_passes_count_those_of_teachers_where_asked():
    runs = [run("flow"), run("cd", passes=5.0, before={"images": 2000, "passes": 4000})]
    found = rows(figures.table(runs, "passes", 10_000))
    assert (found["flow"][1], found["cd"][1]) == ("6,000", "10,000")
    found = rows(figures.table(runs, "passes", 10_000, teachers=True))
    assert (found["flow"][1], found["cd"][1]) == ("6,000", "9,000")
    assert list(rows(figures.table(runs, "passes", 8_000, teachers=True))) == ["flow"]


def test_a_run_whose_passes_are_not_known_is_in_no_table_of_passes():
    runs = [run("flow"), run("other", passes=None)]
    text = figures.table(runs, "passes", 1e9)
    assert list(rows(text)) == ["flow"]
    assert text.endswith("Nothing known within the budget: `other`, seed 0.")
    runs = [run("flow"), run("other", before={"images": None, "passes": None})]
    assert list(rows(figures.table(runs, "images", 1e9, teachers=True))) == ["flow"]


def test_seeds_are_averaged_with_the_range_of_their_distance():
    found = rows(figures.table([run("cd"), run("cd", 1, distance=12.0)], "images", 1e9))
    assert found == {
        "cd": ["2", "2,000", "5.000 (4.000 to 6.000), 0.500", "1.250 (1.000 to 1.500), 0.500"]
    }


def test_runs_are_added_and_read_again(tmp_path):
    file = tmp_path / "digits.json"
    for seed in (1, 0):
        evaluated_run(tmp_path / f"cd_{seed}", "cd", seed, frechet=2.0 + seed)
        figures.main(["keep", str(tmp_path / f"cd_{seed}"), f"--to={file}"])
    before = file.read_bytes()
    figures.main(["keep", str(tmp_path / "cd_0"), f"--to={file}"])
    assert file.read_bytes() == before
    kept = json.loads(before)["runs"]
    assert [(r["name"], r["seed"]) for r in kept] == [("cd", 0), ("cd", 1)]
    assert kept[0]["instead"] == {"real": REAL}
    assert kept[0]["measurement"] == MEASUREMENT and kept[0]["passes_per_image"] is None
    assert [e["sampling_steps"] for e in kept[0]["evaluations"]] == [1, 2, 4, 8, 128]
    assert kept[1]["evaluations"][0]["metrics"]["frechet"] == 3.0


def test_two_runs_of_one_name_and_seed_need_another_name(tmp_path, capsys):
    file = tmp_path / "digits.json"
    for name in ("cd", "other"):
        evaluated_run(tmp_path / name, "cd")
    figures.main(["keep", str(tmp_path / "cd"), f"--to={file}"])
    with pytest.raises(SystemExit):
        figures.main(["keep", str(tmp_path / "other"), f"--to={file}"])
    assert "another run of cd on digits with seed 0" in capsys.readouterr().err
    figures.main(["keep", str(tmp_path / "other"), f"--to={file}", "--name=cd, other"])
    assert [r["name"] for r in figures.read_figures(file)] == ["cd", "cd, other"]


def test_runs_of_another_measurement_are_refused(tmp_path, capsys):
    file = tmp_path / "digits.json"
    evaluated_run(tmp_path / "cd", "cd")
    evaluated_run(tmp_path / "sim", "sim", measurement={**MEASUREMENT, "samples": 2000})
    figures.main(["keep", str(tmp_path / "cd"), f"--to={file}"])
    kept = file.read_bytes()
    with pytest.raises(SystemExit):
        figures.main(["keep", str(tmp_path / "sim"), f"--to={file}"])
    assert "samples" in capsys.readouterr().err and file.read_bytes() == kept


def test_data_sets_have_tables_of_their_own(capsys):
    runs = [run("dis") | {"data": data} for data in ("density:rings", "density:gmm9")]
    runs[0]["instead"] = {"real": {"frechet": 0.25}, "prior": {"frechet": 5.0}}
    text = figures.tables(runs, "images", 1e9, False, ["frechet"])
    assert [line for line in text.splitlines() if not line.startswith("|")] == [
        "density:rings: frechet",
        "",
        "",
        "- real data: 0.250",
        "- the prior: 5.000",
        "",
        "density:gmm9: frechet",
        "",
    ]


def test_the_other_rows_of_evaluations_stand_below_their_method():
    one = run("scds")
    for evaluation in one["evaluations"]:
        evaluation["rows"] = {"hmc": {"frechet": evaluation["sampling_steps"] / 8}}
    del one["evaluations"][-1]["rows"]["hmc"]
    assert rows(figures.table([one], "images", 1e9, metrics=["frechet"])) == {
        "scds": ["1", "2,000", "4.000", "1.000"],
        "scds`, after ten HMC steps": ["1", "2,000", "0.125"],
    }


def test_rows_of_another_solver_are_not_those_of_the_runs_own():
    one = run("dis")
    own = [e | {"rows": {"hmc": {"frechet": 0.5}}} for e in one["evaluations"]]
    other = [
        e | {"setting": "heun", "metrics": {"frechet": 9.0}, "rows": {"hmc": {"frechet": 1.5}}}
        for e in one["evaluations"]
    ]
    one["evaluations"] = own + other
    assert rows(figures.table([one], "images", 1e9, metrics=["frechet"])) == {
        "dis": ["1", "2,000", "4.000", "1.000"],
        "dis`, after ten HMC steps": ["1", "2,000", "0.500", "0.500"],
        "dis`, heun": ["1", "2,000", "9.000", "9.000"],
        "dis`, heun, after ten HMC steps": ["1", "2,000", "1.500", "1.500"],
    }


def test_a_row_counts_the_seeds_behind_it():
    one, other = run("dis"), run("dis", seed=1)
    one["evaluations"] += [e | {"setting": "heun"} for e in one["evaluations"]]
    found = rows(figures.table([one, other], "images", 1e9, metrics=["frechet"]))
    assert (found["dis"][0], found["dis`, heun"][0]) == ("2", "1")


def test_a_cell_of_fewer_seeds_than_its_row_says_so():
    one, other = run("cd"), run("cd", seed=1, distance=12.0)
    other["evaluations"] = [e for e in other["evaluations"] if e["sampling_steps"] == 1]
    found = rows(figures.table([one, other], "images", 1e9, metrics=["frechet"]))
    assert found["cd"] == ["2", "2,000", "5.000 (4.000 to 6.000)", "1.000 (1 seed)"]


def test_a_run_at_an_earlier_step_than_its_group_is_in_no_mean():
    one, other = run("cd"), run("cd", seed=1)
    other["evaluations"] = other["evaluations"][:2]
    text = figures.table([one, other], "images", 1e9, metrics=["frechet"])
    assert rows(text) == {"cd": ["1", "2,000", "4.000", "1.000"]}
    assert text.endswith("In no mean, at an earlier step: `cd`, seed 1 (step 10, not 20).")


def with_optimizer(rate):
    return {"optimizer": {"schedule": "constant", "learning_rate": rate}}


def test_runs_of_other_fields_have_rows_of_their_own(tmp_path):
    file = tmp_path / "kept.json"
    for seed, rate in enumerate((1e-3, 1e-3, 3e-4)):
        folder = tmp_path / f"cd_{seed}"
        fields = {"steps": (1,), "sampling": {"sampler": "objective"}, "frechet": 1.0 + seed}
        evaluated_run(folder, "cd", seed, config=with_optimizer(rate), **fields)
        figures.main(["keep", str(folder), f"--to={file}"])
    kept = figures.read_figures(file)
    table = rows(figures.table(kept, "images", 1e9, metrics=["frechet"]))
    assert table == {
        "cd`, optimizer.learning_rate 0.001": ["2", "384,000", "1.500 (1.000 to 2.000)"],
        "cd`, optimizer.learning_rate 0.0003": ["1", "384,000", "3.000"],
    }
    # An older version kept no fields.
    for each in kept:
        del each["fields"]
    table = rows(figures.table(kept, "images", 1e9, metrics=["frechet"]))
    assert table == {"cd": ["3", "384,000", "2.000 (1.000 to 3.000)"]}


def test_rows_of_as_many_differences_as_a_heading_names_have_their_runs():
    fields = [{"a": 1, "b": 1, "c": 1, "d": value} for value in (1, 2, 3)]
    fields[2] |= {"a": 2, "b": 2, "c": 2}
    runs = [
        run("cd", seed) | {"fields": own, "run": f"{seed}{9 * 'f'}"}
        for seed, own in enumerate(fields)
    ]
    assert [*rows(figures.table(runs, "images", 1e9))] == [
        "cd`, a 1, b 1, c 1, run 0fffffff",
        "cd`, a 1, b 1, c 1, run 1fffffff",
        "cd`, a 2, b 2, c 2",
    ]


def test_scales_and_networks_that_differ_between_runs_are_named(tmp_path):
    file = tmp_path / "kept.json"
    for seed, way in enumerate(({"guidance_scale": 2.0}, {"network": "network"}, {})):
        folder = evaluated_run(tmp_path / f"cd_{seed}", "cd", seed, steps=(1,), sampling=way)
        figures.main(["keep", str(folder), f"--to={file}"])
    found = rows(figures.table(figures.read_figures(file), "images", 1e9, metrics=["frechet"]))
    assert [*found] == [
        "cd`, ema_0.999, heun, guidance 2",
        "cd`, network, heun, guidance 1",
        "cd`, ema_0.999, heun, guidance 1",
    ]


def test_what_others_or_another_run_have_trained_has_no_known_cost():
    runs = [run("import") | {"imported": True}, run("start") | {"fields": {"started_from": True}}]
    runs.append(run("old"))
    runs[2]["evaluations"] = [e | {"step": 0} for e in runs[2]["evaluations"]]
    text = figures.table([*runs, run("cd")], "images", 1e9)
    assert [*rows(text)] == ["cd"]
    left_out = "`import`, seed 0; `start`, seed 0; `old`, seed 0."
    assert text.endswith(f"Nothing known within the budget: {left_out}")


def test_imported_and_started_runs_are_kept_as_such(tmp_path):
    other = {"run": "/runs/other", "id": "o", "step": 9, "networks": {}, "fingerprints": {}}
    own = {"import": {"imported": {"layout": "edm"}}, "start": {"started_from": other}, "cd": {}}
    for name, fields in own.items():
        folder = evaluated_run(tmp_path / name, "cd")
        config = json.loads((folder / "config.json").read_text())
        write_identity(folder, Identity(name, config, **fields))
        figures.main(["keep", str(folder), f"--to={tmp_path / 'kept.json'}", f"--name={name}"])
    kept = figures.read_figures(tmp_path / "kept.json")
    assert [*rows(figures.table(kept, "images", 1e9))] == ["cd`, heun"]


def test_other_networks_than_the_runs_have_rows_of_their_own(tmp_path):
    for network, distance in (("network", 2.0), ("ema_0.999", 1.0)):
        folder = evaluated_run(
            tmp_path / "cd",
            frechet=distance,
            fall=0.0,
            steps=(1,),
            sampling={"network": network, "sampler": "objective"},
        )
    figures.main(["keep", str(folder), f"--to={tmp_path / 'kept.json'}"])
    kept = figures.read_figures(tmp_path / "kept.json")
    assert rows(figures.table(kept, "images", 1e9, metrics=["frechet"])) == {
        "cd`, network": ["1", "384,000", "2.000"],
        "cd`, ema_0.999": ["1", "384,000", "1.000"],
    }


def test_evaluations_of_curves_are_kept_by_their_metric(tmp_path, capsys):
    file, folder = tmp_path / "kept.json", tmp_path / "cd"
    curve = {**MEASUREMENT, "samples": 500}
    for step in (1000, 2000, 3000):
        evaluated_run(folder, steps=(1,), measurement=curve, sampling={"step": step})
    evaluated_run(folder, steps=(1,))

    def kept(*arguments):
        figures.main(["keep", str(folder), f"--to={file}", *arguments])
        (one,) = figures.read_figures(file)
        return [e["step"] for e in one["evaluations"]]

    assert kept() == [3000]
    told = capsys.readouterr().out
    assert "keeps 1 evaluations" in told and "leaves out 3" in told
    name = Protocol(curve, {}).metric
    assert kept(f"--metric={name}") == [1000, 2000, 3000]
    with pytest.raises(SystemExit):
        kept("--metric=fd-other")
    assert name in capsys.readouterr().err


def test_the_id_of_a_result_tells_references_of_one_count_apart(tmp_path, capsys):
    folders = [tmp_path / f"cd_{seed}" for seed in (0, 1)]
    held_out = {**MEASUREMENT, "reference": "digits, test images", "reference_sha256": 64 * "1"}
    for seed, folder in enumerate(folders):
        for measurement, distance in ((held_out, 2.0), (MEASUREMENT, 1.0)):
            evaluated_run(folder, "cd", seed, frechet=distance, steps=(1,), measurement=measurement)
    results = [json.loads(path.read_text()) for path in (folders[0] / "eval").glob("*.json")]
    ids = {r["protocol"]["measurement"]["reference"]: r["id"] for r in results}
    for reference, distance in (("digits, test images", 2.0), ("digits, all images", 1.0)):
        file = tmp_path / f"{distance}.json"
        figures.main(["keep", *map(str, folders), f"--to={file}", f"--metric={ids[reference]}"])
        kept = figures.read_figures(file)
        assert [e["metrics"]["frechet"] for r in kept for e in r["evaluations"]] == [distance] * 2
    other = evaluated_run(tmp_path / "other", "cd", 2)
    with pytest.raises(SystemExit):
        arguments = ["keep", str(folders[0]), str(other), f"--to={tmp_path / 'a.json'}"]
        figures.main([*arguments, f"--metric={ids['digits, test images']}"])
    assert "other has no evaluation that was measured as fd-" in capsys.readouterr().err


def test_numbers_of_other_counts_of_samples_are_not_alike(tmp_path):
    folder = tmp_path / "dis"
    for count in (2000, 5000):
        evaluated_run(folder, "dis", steps=(4,), measurement={}, sampling={"diagnosed": count})
    for path in (folder / "eval").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {"elbo": -1.0}}))
    figures.main(["keep", str(folder), f"--to={tmp_path / 'kept.json'}"])
    (kept,) = figures.read_figures(tmp_path / "kept.json")
    assert len(kept["evaluations"]) == 1


def test_other_solvers_and_scales_than_the_runs_have_rows_of_their_own(tmp_path):
    file = tmp_path / "digits.json"
    own = {"objective": {"name": "denoising", "solver": {"name": "euler"}}}
    ways = {"euler": 1.0, "heun": 1.0, "ddim": 3.0}
    for seed in (0, 1):
        for distance, (sampler, scale) in enumerate(ways.items(), start=1):
            folder = evaluated_run(
                tmp_path / f"flow_{seed}",
                "flow_matching",
                seed,
                frechet=distance + seed,
                fall=0.0,
                steps=(4,),
                sampling={"sampler": sampler, "guidance_scale": scale},
                config=own,
            )
        figures.main(["keep", str(folder), f"--to={file}"])
    found = rows(figures.table(figures.read_figures(file), "images", 1e9, metrics=["frechet"]))
    assert found == {
        "flow_matching`, guidance 1": ["2", "384,000", "1.500 (1.000 to 2.000)"],
        "flow_matching`, heun, guidance 1": ["2", "384,000", "2.500 (2.000 to 3.000)"],
        "flow_matching`, ddim, guidance 3": ["2", "384,000", "3.500 (3.000 to 4.000)"],
    }


def test_a_density_without_exact_samples_is_kept_with_its_numbers(tmp_path):
    folder = evaluated_run(tmp_path / "dis", "dis", steps=(4,), measurement={})
    (path,) = (folder / "eval").glob("*.json")
    result = json.loads(path.read_text()) | {"metrics": {"elbo": -1.0}}
    path.write_text(json.dumps(result))
    figures.main(["keep", str(folder), f"--to={tmp_path / 'kept.json'}"])
    (kept,) = figures.read_figures(tmp_path / "kept.json")
    assert [e["metrics"] for e in kept["evaluations"]] == [{"elbo": -1.0}]


def test_metrics_are_chosen_and_the_first_has_its_range():
    runs = [run("cd"), run("cd", 1, distance=12.0)]
    for each in runs:
        for evaluation in each["evaluations"]:
            evaluation["metrics"]["ess"] = 0.25 + each["seed"] / 2
    found = rows(figures.table(runs, "images", 1e9, metrics=["ess", "frechet"]))
    assert found["cd"][2] == "0.500 (0.250 to 0.750), 5.000"


def test_a_metric_that_no_run_has_is_refused(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps({"runs": [run("cd")]}))
    with pytest.raises(SystemExit):
        figures.main(["show", str(tmp_path / "a.json"), "--images=1", "--metrics=frechet,agrement"])
    assert "--metrics='agrement' is not one of frechet, agreement" in capsys.readouterr().err


def test_runs_on_other_data_may_be_measured_in_another_way(tmp_path):
    file = tmp_path / "figures.json"
    evaluated_run(tmp_path / "cd", "cd")
    figures.main(["keep", str(tmp_path / "cd"), f"--to={file}"])
    kept = json.loads(file.read_text())
    other = {"data": "other", "measurement": {**MEASUREMENT, "samples": 2000}, "run": "other"}
    kept["runs"].append(kept["runs"][0] | other)
    file.write_text(json.dumps(kept))
    figures.main(["keep", str(tmp_path / "cd"), f"--to={file}"])
    assert [r["data"] for r in figures.read_figures(file)] == ["digits", "other"]


def test_another_file_is_named(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match="a.json is no file that `keep` wrote"):
        figures.read_figures(tmp_path / "a.json")
