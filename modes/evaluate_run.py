"""Measures a checkpoint of a run, for the modes evaluate and compare."""

import jax
from ml_collections import ConfigDict

from fewstep.eval.checks import check_evaluation
from fewstep.eval.evaluate import evaluator, sample_count
from fewstep.eval.report.evaluation import FOLDER
from fewstep.eval.summary import summary
from fewstep.files import check_writable
from fewstep.modes.recorded_run import check_moved_data, find_dataset, load_run, replace_folders
from fewstep.modes.request import Request, require_workdir
from fewstep.modes.student import config_in_place_of
from fewstep.objectives.stages import check_sampling_steps
from fewstep.samplers.grids import named_steps


def evaluate_run(request: Request) -> None:
    """Evaluate a run by its own config, or by the `evaluate` fields of --config.

    Fields given without a config replace the run's own. Writes results to --out, by default
    WORKDIR/eval. The run may belong to another user: unless the user names it, its data.dir is only
    read.
    """
    config, experiment, mesh, params, step, _ = load_run(request)
    given = config_in_place_of(config, request)
    clear_recorded_weights(config, given, request)
    config = replace_folders(config, given)
    rows = given.evaluate.batch_size or config.evaluate.batch_size
    config.evaluate, config.data.label_shares = given.evaluate, given.data.label_shares
    config.evaluate.batch_size = rows
    writable = request.config is not None or "data.dir" in request.fields
    if jax.process_index() == 0:
        folder = request.out or require_workdir(request) / FOLDER
        check_writable(folder, "choose another folder by --out=FOLDER")
    if not config.evaluate.steps:
        raise ValueError("evaluate.steps=() leaves nothing to evaluate; name some by --steps=1,4")
    with named_steps(f"evaluate.steps={tuple(config.evaluate.steps)}"):
        check_sampling_steps(experiment.objective.stages, step, config.evaluate.steps)
    dataset = find_dataset(config, experiment, writable=writable)
    check_moved_data(require_workdir(request), config, experiment, dataset)
    check_evaluation(experiment, dataset, config, mesh, writable)
    evaluate_network = evaluator(
        experiment,
        dataset,
        config,
        mesh,
        require_workdir(request),
        writable=writable,
        samples=sample_count(config, step),
        out=request.out,
        show=lambda results: print(summary(results), flush=True),
    )
    evaluate_network(params, step)


def clear_recorded_weights(recorded: ConfigDict, given: ConfigDict, request: Request) -> None:
    """Clear the record's file of weights in the given config, if that has other features."""
    fields, own = given.evaluate, recorded.evaluate
    asked = {*request.fields, *(request.given or ())}
    recorded_file = fields.weights == own.weights and "evaluate.weights" not in asked
    if recorded_file and fields.features != own.features:
        fields.weights = ""
