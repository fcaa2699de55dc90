"""--mode=evaluate: measure the newest checkpoint of a run."""

from eval.evaluate import check_sampling, evaluator, summary
from modes.request import Request, load_dataset, load_run, required_workdir


def evaluate(request: Request) -> None:
    """Evaluate a run at config.evaluate.steps, from its workdir alone or with a config's fields."""
    path = required_workdir(request)
    config, experiment, mesh, params, step = load_run(path)
    if request.config is not None:
        config.evaluate = request.config.evaluate
    check_sampling(experiment, config, mesh)
    evaluate_network = evaluator(experiment, load_dataset(config), config, mesh, path)
    print(summary(evaluate_network(params, step)))
