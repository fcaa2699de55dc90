"""Runs the command line like a user: in its own process, from the root of the repository."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.modes import MODES
from fewstep.training.cluster import exits
from fewstep.training.storage import checkpoint, identity
from fewstep.training.storage.workdir import start_run
from tests import cli
from tests.cli import ROOT, SERVER, TIMEOUT, environment
from tests.networks import NO_BLOCKS
from tests.training.cluster.test_preemption import Dying
from tests.training.killed import saved_steps, wait_for
from tests.training.kinds import turn_of
from tests.training.runs import largest_difference, small_config

CONFIG = "--config=configs/digits.py:shortcut"
EDM = "--config=configs/digits.py:edm"
CD = "--config=configs/digits.py:cd"
ECT = "--config=configs/digits.py:ect"
SIM = "--config=configs/digits.py:sim"
DISTANCE = "--config.objective.divergence.distance"
run, Command = (partial(function, nano=NO_BLOCKS) for function in (cli.run, cli.Command))
SMALL = (
    "--config.model.size=nano",
    "--config.batch_size=64",
    "--config.optimizer.warmup_steps=2",
    "--config.log.every=3",
    "--config.evaluate.steps=(1,4)",
    "--config.evaluate.num_samples=20",
    "--config.evaluate.batch_size=20",
)
# Flags of a short run that later commands can continue with more steps.
SHORT = (
    "--config.model.size=nano",
    "--config.batch_size=64",
    "--config.optimizer.schedule=constant",
    "--config.optimizer.warmup_steps=0",
    "--config.evaluate.steps=()",
)


EMPTY = (CONFIG, "--config.evaluate.steps=()")


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    """A run of six steps."""
    workdir = tmp_path_factory.mktemp("run")
    run(CONFIG, f"--workdir={workdir}", "--config.steps=6", "--config.checkpoint.every=2", *SMALL)
    return workdir


def read_arrays(workdir, step):
    """Return every saved array of a checkpoint, by item."""
    with checkpoint.open_checkpoints(workdir) as checkpoints:
        names = [p.name for p in (workdir / "checkpoints" / str(step)).iterdir() if p.is_dir()]
        return {
            name: checkpoints.restore(
                step,
                args=checkpoint.ocp.args.Composite(**{name: checkpoint.ocp.args.StandardRestore()}),
            )[name]
            for name in names
            if name != checkpoint.RUN
        }


def read_results(workdir):
    """Return the results of a run by number of sampling steps."""
    found = [json.loads(path.read_text()) for path in (workdir / "eval").glob("*.json")]
    return {result["protocol"]["sampling"]["steps"]: result for result in found}


def test_a_run_says_what_it_is(trained_run):
    rows = [json.loads(line) for line in (trained_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 6]
    assert {"loss", "loss_flow", "gradient_norm", "learning_rate", "images_per_second"} <= set(
        rows[0]
    )
    assert json.loads((trained_run / "config.json").read_text())["data"]["image_size"] == 8
    assert "jax" in json.loads((trained_run / "environment.json").read_text())[-1]["packages"]
    measured = read_results(trained_run)
    assert set(measured) == {1, 4}
    assert measured[1]["metric"] == "fd-classifier-20"
    assert measured[1]["metrics"]["frechet"] > 2.0 * measured[1]["real"]["frechet"] > 0.0
    assert measured[1]["real"]["agreement"] > 0.97


@pytest.mark.in_turn("number", 2)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_and_started_again_equals_uninterrupted(trained_run, tmp_path, number):
    workdir = tmp_path / "run"
    command = [CONFIG, f"--workdir={workdir}", *SMALL, "--config.checkpoint.every=2"]
    first = Command([*command, "--config.steps=6"])
    process = first.process
    wait_for(lambda: (workdir / "checkpoints" / "2").exists() or not process.is_alive())
    os.kill(process.pid, signal.SIGSTOP)  # keeps it alive until the second run is refused
    second = run(*command, "--config.steps=6", expect=2)
    assert f"{workdir} is being trained in (process {process.pid} on" in second.stderr
    os.kill(process.pid, number)
    os.kill(process.pid, signal.SIGCONT)
    errors = first.result().stderr
    if number == signal.SIGTERM:
        assert process.exitcode == exits.PREEMPTED
        assert "preempted, resumable: stopped after step" in errors.splitlines()[-1]
    else:
        assert process.exitcode == -9
    survived = saved_steps(workdir)
    assert survived
    run(*command, "--config.steps=6")
    assert largest_difference(read_arrays(trained_run, 6), read_arrays(workdir, 6)) == 0.0
    assert read_losses(workdir) == read_losses(trained_run)
    listed = run("--mode=checkpoints", f"--workdir={workdir}").stdout.splitlines()
    assert [line.split()[0] for line in listed][::2] == ["step", "6"]
    assert all(" whole" in line for line in listed[1:]) and "frechet_1" in listed[-1]


def run_with_signal(mode, number, place, said):
    """Run the command line in this process, in a mode that only calls `place(number)`."""
    import main

    def act(request):
        place(number)
        time.sleep(10.0)

    main.MODES[mode] = main.MODES[mode]._replace(run=act)
    main.flags.FLAGS(["main.py", f"--mode={mode}"])
    with said.open("w") as file, contextlib.redirect_stderr(file):
        main.main([])


@pytest.mark.in_turn("number", 2)
@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGTERM, exits.PREEMPTED, "preempted, resumable: "),
        (signal.SIGINT, exits.INTERRUPTED, "interrupted; the same command "),
    ],
)
def test_a_signal_ends_every_mode_with_a_line_and_its_code(tmp_path, number, code, words):
    # Of the modes that a signal ends in the same way, two take turns.
    modes = ["train", "compare", *turn_of([m for m in MODES if m not in ("train", "compare")], 2)]
    for mode, place in [(mode, signal.raise_signal) for mode in modes] + [("sample", Dying)]:
        said = tmp_path / mode
        process = SERVER.Process(target=run_with_signal, args=(mode, number, place, said))
        process.start()
        process.join(TIMEOUT)
        assert process.exitcode == code, mode
        (line,) = said.read_text().splitlines()
        assert line.startswith(words)
        if number == signal.SIGINT:
            trains = mode in ("train", "compare")
            assert line.endswith("on from the last checkpoint" if trains else "starts again")


def fail(number):
    raise OSError(number, os.strerror(number), "/there/train_images.npy")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_prints_one_line_that_names_the_file(tmp_path, number):
    said = tmp_path / "said"
    process = SERVER.Process(target=run_with_signal, args=("prepare", number, fail, said))
    process.start()
    process.join(TIMEOUT)
    (line,) = said.read_text().splitlines()
    assert process.exitcode == exits.BAD_INPUT and "nothing that was there before is lost" in line
    named = f"error: /there/train_images.npy could not be written ({os.strerror(number)})"
    assert line.startswith(named)


def test_a_comparison_is_stopped_while_a_run_of_it_trains(tmp_path):
    options = ("--config=configs/digits.py", "--mode=compare", "--methods=cd_flow", *SHORT[:4])
    steps = ("--config.steps=1000000", "--config.checkpoint.every=2", "--config.checkpoint.keep=1")
    arguments = (*options, *steps, f"--workdir={tmp_path}", "--config.evaluate.features=none")
    command = Command(arguments)
    cell = tmp_path / "flow_matching" / "seed_0"
    wait_for(lambda: saved_steps(cell) or not command.process.is_alive())
    command.process.terminate()
    result = command.result()
    assert command.process.exitcode == exits.PREEMPTED
    assert "preempted, resumable: stopped after step" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "cd_flow").exists()


def read_losses(workdir):
    """Return the logged losses by step."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_a_run_that_diverges_is_replayed(tmp_path):
    run(
        "--config=configs/digits.py:flow_matching",
        f"--workdir={tmp_path}",
        "--config.optimizer.learning_rate=1e30",
        "--config.checkpoint.every=1",
        *SHORT,
        expect=exits.DIVERGED,
    )
    again = run("--mode=replay", f"--workdir={tmp_path}")
    assert "repeated step 2, which ended with: loss or gradient of the network" in again.stdout
    assert "rows whose loss is not finite: 64 of 64: 0 (image " in again.stdout
    assert "gradients that are not finite: conditioning/" in again.stdout


def test_samples_need_only_the_workdir_and_do_not_depend_on_their_number(trained_run, tmp_path):
    options = (f"--workdir={trained_run}", "--mode=sample", "--steps=2", "--labels=3,1")
    run(*options, "--seeds=0-29", f"--out={tmp_path}/many.npz")
    seeds = [8, 7, *range(2, 6), *range(10, 30)]  # two batches, out of order
    run(*options, "--seeds=8,7,2-5,10-29", f"--out={tmp_path}/few", devices=2)
    files = {seed: f"{seed:06d}-label_{(3, 1)[seed % 2]}.png" for seed in seeds}
    many = np.load(tmp_path / "many.npz")
    assert (many["x"].dtype, many["x"].shape) == (np.uint8, (30, 8, 8, 1))
    assert many["y"].dtype == np.int32
    np.testing.assert_array_equal(many["y"][:4], [3, 1, 3, 1])
    np.testing.assert_array_equal(many["seed"], range(30))
    assert len(np.unique(many["x"].reshape(30, -1), axis=0)) == 30
    assert Image.open(tmp_path / "many.png").size[0] > 100
    assert {path.name for path in (tmp_path / "few").iterdir()} == {*files.values()}
    assert (tmp_path / "few.png").is_file()
    for seed in seeds:
        image = np.asarray(Image.open(tmp_path / "few" / files[seed]))
        # Two devices may round a pixel the other way.
        assert np.abs(image.astype(int) - many["x"][seed, ..., 0]).max() <= 1


def test_evaluate_again_and_report(trained_run, tmp_path):
    first = read_results(trained_run)
    printed = run(f"--workdir={trained_run}", "--mode=evaluate").stdout
    assert f"{first[4]['metrics']['frechet']:.3f}" in printed
    assert read_results(trained_run) == first
    other = [f"--workdir={trained_run}", "--mode=evaluate", CONFIG, *SMALL]
    pixels = run(*other, "--config.evaluate.features=pixels").stdout
    assert "fd-pixels-20 against digits, all images" in pixels
    page = tmp_path / "page.html"
    run("--mode=report", f"--workdirs={trained_run}", f"--out={page}", "--metric=fd-classifier-20")
    assert f"{first[1]['metrics']['frechet']:.3f}" in page.read_text()
    run("--mode=report", f"--workdirs={trained_run}", f"--out={page}")
    assert f"{first[1]['metrics']['frechet']:.3f}" not in page.read_text()
    refused = run("--mode=report", f"--workdirs={trained_run}", "--metric=fid-50k", expect=2)
    assert "not every run was measured by fid-50k" in refused.stderr


def test_a_record_without_todays_evaluation_is_evaluated_by_todays_default(trained_run, tmp_path):
    copy = shutil.copytree(trained_run, tmp_path / "copy")
    record = identity.read_identity(copy)
    del record.config["evaluate"]["features"]
    identity.write_identity(copy, record)
    refused = run(f"--workdir={copy}", "--mode=evaluate", expect=2)
    assert "evaluate.features=inception" in refused.stderr
    nothing = run(f"--workdir={copy}", "--mode=evaluate", *EMPTY, expect=2)
    assert "evaluate.steps=() leaves nothing" in nothing.stderr


def test_describe_counts_before_anything_is_trained():
    # Starts like for a user, not as a fork of a process that has imported all modules.
    command = [sys.executable, "main.py", "--mode=describe"]
    command += ["--config=configs/digits.py:shortcut"]
    printed = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    ).stdout
    assert "objective    shortcut on the linear path" in printed
    assert "parameters" in printed
    assert "GFLOP" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CONFIG, "--workdir=/nowhere", "--config.batchsize=3"), "batch_size"),
        ((CONFIG, "--workdir=/nowhere", "--config.steps=many"), "steps"),
        (("--config=configs/digit.py", "--workdir=/nowhere"), "configs/digit.py"),
        (
            ("--config=configs/digits.py:shortcuts", "--workdir=/nowhere"),
            "method='shortcuts' is not one of",
        ),
        ((CONFIG,), "--workdir"),
        (("--workdir=/nowhere",), "--config"),
        (("--mode=sample", "--workdir=/nowhere"), "nowhere/config.json does not exist"),
        ((CONFIG, "--mode=trian"), "--mode"),
        ((CONFIG, "--workdir=/nowhere", "--config.data.name=digit"), "digits"),
        ((CONFIG, "--workdir=/nowhere", "--config.batch_size=20"), "batch_size"),
        ((CONFIG, "--workdir=/nowhere", "--config.batch_size=0"), "batch_size=0 must be a whole"),
        ((CONFIG, "--workdir=/nowhere", "--config.steps=0"), "steps=0 must be a whole number"),
        ((CONFIG, "--workdir=/nowhere", "--config.optimizer.learning_rate=nan"), "rate=nan must"),
        ((CONFIG, "--workdir=/nowhere", "--config.checkpoint.keep=-1"), "checkpoint.keep=-1 must"),
        (
            (CONFIG, "--workdir=/nowhere", "--config.evaluate.steps=(1,3)"),
            "evaluate.steps=(1, 3): a shortcut model samples in a power of two",
        ),
        ((CONFIG, "--workdir=/nowhere", "--config.path.name=ve"), "needs prediction.kind=F"),
        ((CONFIG, "--workdir=/nowhere", "--config.path.name=vp_ddpm"), "or trigflow, not vp_ddpm"),
        ((CONFIG, "--workdir=/nowhere", "--config.teacher=runs/x"), "teacher=runs/x: "),
        ((CD, "--workdir=/nowhere"), "cd needs a teacher; set --config.teacher=WORKDIR"),
        (
            (CD, "--workdir=/nowhere", "--config.model.guidance_input=True"),
            "needs model.guidance_input=False, not True (objective.guidance_range",
        ),
        ((CD, "--workdir=/nowhere", "--config.objective.distance.name=l2"), "objective.distance"),
        (
            (CD, "--workdir=/nowhere", "--config.evaluate.guidance_scale=2.0"),
            "scale 1 only, not 2",
        ),
        ((SIM, "--workdir=/nowhere", f"{DISTANCE}.name=l1"), "has a gradient that jumps"),
        ((SIM, "--workdir=/nowhere", f"{DISTANCE}.name=squared_l2"), "sim needs a teacher"),
        (
            (SIM, "--workdir=/nowhere", f"{DISTANCE}.name=squared_l2", f"{DISTANCE}.c=1.0"),
            "distance.c is not used by squared_l2",
        ),
        (("--config=configs/cifar10.py:sim", "--workdir=/nowhere"), "sim needs a teacher"),
        ((CONFIG, "--workdir=/nowhere", "--steps=4"), "did you mean --config.steps"),
        ((CONFIG, "--workdir=/nowhere", "sample"), "did you mean --mode=sample"),
        ((CONFIG, "--workdir=/nowhere", "--config.data.num_classes=3"), "data.num_classes=3"),
        (
            (CONFIG, "--workdir=/nowhere", "--config.codec.name=sd", "--config.model.patch_size=1"),
            "codec.weights is required for codec.name=sd; name the file",
        ),
    ],
)
def test_errors_are_short_and_end_with_code_2(tmp_path, arguments, message):
    nowhere = str(tmp_path / "nowhere")
    result = run(*(a.replace("/nowhere", nowhere) for a in arguments), expect=2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2
    assert not Path(nowhere).exists()


def test_a_batch_that_devices_cannot_share(tmp_path):
    result = run(CONFIG, f"--workdir={tmp_path}/r", "--config.batch_size=100", devices=8, expect=2)
    assert "batch_size=100 is not divisible by the 8 devices" in result.stderr


def test_another_config_on_an_old_run(trained_run):
    other = [CONFIG, f"--workdir={trained_run}", *SMALL, "--config.steps=6", "--config.seed=1"]
    result = run(*other, expect=2)
    assert "seed (0 there, 1 now)" in result.stderr


def test_a_teacher_of_another_model(trained_run, tmp_path):
    options = [CD, f"--workdir={tmp_path}/r", f"--config.teacher={trained_run}@4", *SMALL]
    result = run(*options, "--config.evaluate.steps=(1,2)", expect=2)
    assert f"teacher={trained_run}@4 was trained by shortcut, which does not" in result.stderr
    assert not (tmp_path / "r").exists()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """An edm run of two steps."""
    workdir = tmp_path_factory.mktemp("teacher")
    run(EDM, f"--workdir={workdir}", "--config.steps=2", *SHORT)
    return workdir


@pytest.mark.some_days(2)
def test_a_student_needs_its_teacher_to_go_on_but_not_to_sample(teacher, tmp_path):
    student, teacher = tmp_path / "student", shutil.copytree(teacher, tmp_path / "teacher")
    distil = [CD, f"--config.teacher={teacher}", f"--workdir={student}", *SHORT]
    sample = ["--mode=sample", f"--workdir={student}", "--steps=2", "--seeds=0-3"]
    run(*distil, "--config.steps=2")
    run(*sample, f"--out={tmp_path}/first.npz")
    run(*distil, "--config.steps=4")
    shutil.rmtree(teacher)
    assert "at step 4, 2 sampling step(s)" in run(*sample, f"--out={tmp_path}/last.npz").stdout
    first, last = (np.load(tmp_path / f"{name}.npz")["x"] for name in ("first", "last"))
    assert first.shape == last.shape == (4, 8, 8, 1) and (first != last).any()
    assert (
        f"teacher={teacher}: no run is there" in run(*distil, "--config.steps=6", expect=2).stderr
    )


@pytest.mark.some_days(2)
def test_a_run_that_only_started_from_a_teacher_goes_on_without_it(teacher, tmp_path):
    tuned, copy = tmp_path / "tuned", shutil.copytree(teacher, tmp_path / "teacher")
    tune = [ECT, f"--config.teacher={copy}", f"--workdir={tuned}", *SHORT]
    # With a learning rate of 0 the parameters stay as they started.
    tune += ["--config.objective.total_steps=4", "--config.optimizer.learning_rate=0.0"]
    run(*tune, "--config.steps=2")
    shutil.rmtree(copy)
    run(*tune, "--config.steps=4")
    start, end = read_arrays(teacher, 2)["ema_0.999"], read_arrays(tuned, 4)["network"]
    assert largest_difference(start, end) == 0.0


@pytest.mark.some_days(2)
def test_a_generator_learns_without_images(teacher, tmp_path):
    # The data set is missing; the record of the teacher has the sizes of its images.
    workdir = tmp_path / "generator"
    made = run(
        "--config=configs/digits.py:dmd",
        f"--config.teacher={teacher}",
        f"--workdir={workdir}",
        *SHORT,
        "--config.steps=2",
        "--config.data.name=mnist",
        f"--config.data.dir={tmp_path}/none",
        "--config.evaluate.steps=(1,)",
        "--config.evaluate.num_samples=20",
        "--config.evaluate.batch_size=20",
        "--config.objective.regression_weight=0.25",
        "--config.pairs.count=20",
        "--config.pairs.steps=2",
    )
    assert "skipped metrics: the data set mnist is not here" in made.stderr
    with np.load(workdir / "pairs.npz") as pairs:
        assert pairs["x_0"].shape == pairs["eps"].shape == (20, 8, 8, 1)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["generator/regression"] > 0.0 and rows[0]["fake_score/loss"] > 0.0
    again = run("--mode=evaluate", f"--workdir={workdir}").stdout
    assert "skipped metrics: the data set mnist is not here" in again
    run("--mode=sample", f"--workdir={workdir}", "--seeds=0-3", f"--out={tmp_path}/s.npz")
    assert np.load(tmp_path / "s.npz")["x"].shape == (4, 8, 8, 1)


def test_a_run_of_another_version_is_named(tmp_path):
    config, run_folder = small_config("edm"), tmp_path / "run"
    config.objective = config.objective.to_dict() | {"old_field": 1}
    start_run(run_folder, config)
    version = f"{run_folder} was made by another version of Fewstep"
    for arguments, message in (
        (["--mode=sample", f"--workdir={run_folder}"], version),
        ([CD, "--mode=describe", f"--config.teacher={run_folder}"], f"teacher={version}"),
    ):
        result = run(*arguments, expect=2)
        assert message in result.stderr and "objective.old_field" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_a_damaged_checkpoint_is_named(trained_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained_run, copy)
    for file in (copy / "checkpoints" / "6" / "ema_0.999").rglob("*"):
        if file.is_file() and file.stat().st_size > 10_000:
            file.write_bytes(file.read_bytes()[:1000])
    sample = ("--mode=sample", f"--workdir={copy}", "--seeds=0-3")
    result = run(*sample)
    assert "checkpoints/6 cannot be read" in result.stderr and "; 4 is used" in result.stderr
    assert "samples of ema_0.999 at step 4" in result.stdout
    result = run(*sample, "--checkpoint=6", expect=2)
    assert "checkpoints/6 cannot be read" in result.stderr
    assert "Traceback" not in result.stderr
    shutil.rmtree(copy / "checkpoints" / "4")
    result = run(*sample, expect=2)
    assert "No checkpoint of 1 is whole" in result.stderr


def test_labels_and_steps_out_of_range(trained_run):
    for options, message in (
        (("--labels=10",), "0 to 9"),
        (("--labels=a",), "--labels=a is not a class"),
        (("--steps=3",), "--steps=3: a shortcut model samples in a power of two"),
        (("--steps=0",), "--steps=0 must be 1 or more"),
        (("--labels=0,1,2", "--seeds=0,1"), "--labels has 3 labels for 2 --seeds"),
        (("--seeds=3-1",), "--seeds=3-1"),
        (("--seeds=a",), "--seeds=a"),
        ((f"--seeds={2**31}",), "the largest is"),
        (("--guidance=3", "--steps=1"), "trained with guidance scale"),
        (("--out=x.png",), "must be a folder, or a name that ends in .npz"),
        (("--checkpoint=5",), "has no step 5; it has 4, 6"),
        (("--network=ema_0.9",), "did you mean 'ema_0.999'"),
        (("--guidance=nan",), "nan is not finite"),
    ):
        result = run("--mode=sample", f"--workdir={trained_run}", *options, expect=2)
        assert message in result.stderr


@pytest.mark.some_days(2)
def test_images_are_distilled_from_a_teacher_that_denoises(teacher, trained_run, tmp_path):
    def distil(folder, *options, expect=0):
        arguments = [f"--teacher={folder}", "--steps=3", "--per_class=2", *options]
        return run(*arguments, module="examples.score_distillation", expect=expect)

    made = distil(teacher, f"--out={tmp_path}/o.png")
    names = [line.split(",")[0] for line in made.stdout.splitlines()]
    assert names == ["SDS", "NFSD", "VSD", "real", f"{tmp_path}/o.png"]
    assert Image.open(tmp_path / "o.png").size[0] > 100
    for folder, out, message in (
        (trained_run, f"{tmp_path}/p.png", "predicts data and noise at every time"),
        (teacher, f"{tmp_path}/p", "must end in .png"),
    ):
        failed = distil(folder, f"--out={out}", expect=2)
        assert message in failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1
