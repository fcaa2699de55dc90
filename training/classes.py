"""Class names of a run, read from its record."""

from pathlib import Path

from fewstep.training.location import find_teacher
from fewstep.training.storage import workdir


def class_names(folder: Path) -> tuple[str, ...]:
    """Class names in the order of the labels; () if no record has them.

    A run that reads no images, such as a student of `sim`, has its teacher's classes.
    """
    if not workdir.is_run(folder):
        return ()
    run = workdir.recorded_identity(folder)
    if run.data is not None:
        return tuple(run.data.get("classes", ()))
    teacher = run.config.get("teacher")
    return class_names(find_teacher(folder, teacher).folder) if teacher else ()
