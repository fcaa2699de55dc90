"""Which checkpoints a run keeps."""

from pathlib import Path

from ml_collections import ConfigDict

from fewstep.eval.features.networks import NONE as NO_FEATURES
from fewstep.eval.metrics import METRICS
from fewstep.eval.metrics.metric import LESS, NEITHER, parse_logged_name
from fewstep.eval.points import FEATURES
from fewstep.training.report import logged_evaluations
from fewstep.training.storage.checkpoint import Retention


def is_measured(metric: str, fields: ConfigDict) -> bool:
    """Whether evaluations by these fields, `evaluate` of a config, can have a metric."""
    if metric == "agreement" and not fields.agreement:
        return False
    of_points = fields.features == FEATURES
    return fields.features != NO_FEATURES and (of_points or not METRICS[metric].of_points)


def retention_of(config: ConfigDict, folder: Path) -> Retention:
    """Return which checkpoints to keep. Raises ValueError if no evaluation gives keep_best."""
    fields, best = config.checkpoint, config.checkpoint.keep_best
    metric, steps = parse_logged_name(best)
    ranked = {
        name: own.better
        for name, own in METRICS.items()
        if own.better != NEITHER and is_measured(name, config.evaluate)
    }
    known = steps in map(str, config.evaluate.steps) and config.evaluate.every > 0
    if best and not (metric in ranked and known):
        raise ValueError(
            f"checkpoint.keep_best={best} must be one of {', '.join(ranked) or 'none'} (those "
            f"that evaluate.features={config.evaluate.features} gives), an underscore and one of "
            "evaluate.steps, such as frechet_1, with evaluate.every above 0"
        )

    def scores() -> dict[int, float]:
        measured = logged_evaluations(folder).items() if best else ()
        sign = 1 if ranked.get(metric) == LESS else -1
        return {step: sign * values[best] for step, values in measured if best in values}

    return Retention(fields.keep, fields.keep_hours, tuple(fields.keep_steps), scores)
