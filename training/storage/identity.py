"""The identity of a run: WORKDIR/run.json, sealed, with a copy in every checkpoint.

The identity tells a run's own checkpoints from those of other runs, and records the data and the
teacher that the run began with. config.json only shows the config; the sealed one counts.
"""

import itertools
import json
import secrets
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fewstep.data import FIRST_ORDER, path_in_name
from fewstep.data.arrays.identity import identity_changes
from fewstep.files import write_json
from fewstep.messages import Difference, differences
from fewstep.training.cluster.processes import warn_once
from fewstep.training.storage.defaults import fill_missing_fields, removed_fields
from fewstep.training.storage.fields import REFUSE, is_whole
from fewstep.training.storage.lengths import Length, changed_continuation, is_length
from fewstep.training.storage.listing import File, changed_files
from fewstep.training.storage.reasons import (
    FOREIGN,
    STEPS,
    explain_changes,
    length_schedules,
    lengths_left_open,
)
from fewstep.training.storage.record import parse_config
from fewstep.training.storage.seal import seal_record, unseal_record

RUN = "run.json"
ID_BYTES = 16
# Fields, and prefixes of fields, that may change when a run goes on; others make it another run.
CHANGEABLE = (
    "steps",
    "steps_per_dispatch",
    "compilation_cache",
    "debug_keeps",  # what debug does is in the other fields
    "log.",
    "evaluate.",
    "checkpoint.",
    "watchdog.",
    "mesh.",
    "model.attention",
    "ema.sample_with",
    "continued.",
    "data.dir",
    "data.local_dir",
    "data.on_device",
    "codec.weights",  # codec.fingerprint shows whether they are the same
    "data.unreadable",  # the data's identity shows which images were left out
)
DECODING = "data.decoding"
# Of these, what an evaluation during training measures, so what its curve compares.
MEASURING = (
    "evaluate.features",
    "evaluate.reference",
    "evaluate.num_samples",
    "evaluate.guidance_scale",
    "ema.sample_with",
)

Plain = Mapping[str, Any]


class Identity(NamedTuple):
    """What identifies a run, as plain JSON values.

    id: random hexadecimal digits, drawn when the run begins. config: all fields.
    data: identity of the data set (data.Dataset.identity), None if training reads none.
    teacher: run, step, network and fingerprint (training.teacher.teacher_identity), None without
    one. The run's id is for readers: records of older versions lack it.
    order: the order in which the run reads its data, a key of data.order.ORDERS. Records of older
    versions lack it, and read in the first order.
    class_counts: images of each class, in whose shares labels are drawn (training/labels.py). None
    in records of older versions, which draw all classes equally often.
    lengths: those of a run that was continued with other steps (training/storage/lengths.py), ()
    if it has had only one.
    started_from: run, id, step, networks and fingerprints of the run whose networks it started from
    (training/start.py), None without one.
    imported: layout, part and SHA-256 of the published files that a run was made of
    (modes/import_weights.py), None for a run that was trained from its start.
    """

    id: str
    config: Plain
    data: Plain | None = None
    teacher: Plain | None = None
    order: int = FIRST_ORDER
    class_counts: Sequence[int] | None = None
    lengths: Sequence[Length] = ()
    started_from: Plain | None = None
    imported: Plain | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """All fields of the config by dotted name; each that it lacks is what runs do without."""
        return flatten_fields(plain_fields(fill_missing_fields(self.config)))

    @property
    def stamp(self) -> dict[str, Any]:
        """What a checkpoint records besides its config."""
        return {name: value for name, value in self._asdict().items() if name != "config"}


class NewerVersionError(ValueError):
    """A record has fields that only a newer version knows."""


def new_id() -> str:
    """An id that no other run has."""
    return secrets.token_hex(ID_BYTES)


def read_identity(workdir: Path) -> Identity | None:
    """The identity in a run's folder; None if it holds no run.json.

    Raises ValueError if the file was changed or damaged.
    """
    path = workdir / RUN
    try:
        return identity_of(unseal_record(json.loads(path.read_bytes())))
    except FileNotFoundError:
        return None
    except NewerVersionError as error:
        raise ValueError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not what was written ({error}); delete it, the checkpoints have a copy"
        ) from error


def identity_of(record: Any) -> Identity:
    """The identity in a record of plain JSON values.

    Raises NewerVersionError for fields that this version does not know, ValueError for fields that
    are missing or have the wrong type.
    """
    unknown = sorted({*record} - {*Identity._fields}) if isinstance(record, Mapping) else []
    if unknown:
        raise NewerVersionError(
            f"a newer version of Fewstep wrote it ({', '.join(map(str, unknown))}); use that "
            "version"
        )
    try:
        identity = Identity(**record)
        parse_config(identity.config)
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"it lacks the fields of a run: {error}") from error
    sources = (identity.data, identity.teacher, identity.started_from, identity.imported)
    plain = all(source is None or isinstance(source, Mapping) for source in sources)
    counted = identity.class_counts is None or is_counts(identity.class_counts)
    long = isinstance(identity.lengths, list | tuple) and all(map(is_length, identity.lengths))
    known = isinstance(identity.id, str) and is_whole(identity.order)
    if not (known and plain and counted and long):
        raise ValueError("a field of the run has the wrong type")
    return identity._replace(lengths=[Length(*length) for length in identity.lengths])


def is_counts(value: Any) -> bool:
    """Whether a value is a list of whole numbers that are not negative."""
    return isinstance(value, list) and all(is_whole(count) and count >= 0 for count in value)


def write_identity(workdir: Path, identity: Identity) -> None:
    """Record the identity in the run's folder."""
    write_json(workdir / RUN, seal_record(identity._asdict()))


def check_checkpoint(record: Plain, folder: Path) -> None:
    """Raises ValueError unless a checkpoint's record has the step and the run of its folder.

    folder: WORKDIR/checkpoints/STEP. The config must be the run's too: it identifies a checkpoint
    of an older version, which has no id, and reveals an edited run.json. Without a run.json this
    checks only the step.
    """
    if str(record["step"]) != folder.name:
        raise ValueError(
            f"checkpoint {folder} holds step {record['step']}: it was renamed or copied there; "
            "rename it to its step, or move it away"
        )
    run, stamp = read_identity(folder.parents[1]), record.get("run")
    if run is None:
        if stamp is not None:
            warn_once(
                f"{folder.parents[1]} has no {RUN}, so its checkpoints are trusted to be of one "
                f"run, {stamp['id']}"
            )
        return
    if stamp is not None and stamp["id"] != run.id:
        raise ValueError(
            f"checkpoint {folder} belongs to another run (id {stamp['id']}, {RUN} has {run.id}); "
            "move away the one that does not belong here"
        )
    # Teacher and images may have moved since, and a run that was continued has another length.
    free = ("teacher", "data.name", *([STEPS] if run.lengths else []))
    found = config_changes(run.config, record["config"], free)
    if found:
        raise ValueError(
            f"checkpoint {folder} belongs to a run with another config: "
            f"{'; '.join(in_words(found))}. Move it away, or restore {RUN} if that was edited"
        )


def check_same_identity(
    old: Identity, new: Identity, workdir: Path, files: Sequence[File] | None = None
) -> None:
    """Raises ValueError that lists the fields in which `new` is another run than `old`.

    Parameters identify a teacher and images identify data, so both may move.

    files: the data's files now (training.storage.listing), to say which of them changed.
    """
    found = config_changes(old.config, new.config, movable_fields(old, new))
    found += changed_continuation(old.lengths, old.fields, new.fields)
    if found:
        raise ValueError(
            f"{workdir} holds a run with another config: {'; '.join(in_words(found))}. "
            f"{explain_changes(found, old.fields)}. {way_on(found, old.fields, workdir)}"
        )
    check_same_sources(old, new.data, new.teacher, workdir, files)


def movable_fields(old: Identity, new: Identity) -> tuple[str, ...]:
    """The fields for the places of teacher and data that may change, since their content is known.

    A resumed run that no longer reads its teacher needs no teacher. For folders of images only the
    content counts.
    """
    both = old.config.get("teacher") and new.config.get("teacher")
    same_teacher = both and old.teacher is not None
    same_teacher = same_teacher and parameters(new.teacher) in (None, parameters(old.teacher))
    names = [config.get("data", {}).get("name") or "" for config in (old.config, new.config)]
    folders = all(map(path_in_name, names))
    same_data = folders or (old.data is not None and old.data == new.data)
    return ("teacher",) * bool(same_teacher) + ("data.name",) * same_data


def check_same_sources(
    run: Identity,
    data: Plain | None,
    teacher: Plain | None,
    workdir: Path,
    files: Sequence[File] | None = None,
) -> None:
    """Raises ValueError unless data and teacher are those that the run began with."""
    where = changed_files(workdir, files) if files else ""
    name = f"the data set of {workdir}"
    check_same_source(run.data, data, name, "data.name's files", where)
    before, now = parameters(run.teacher), parameters(teacher)
    check_same_source(before, now, f"the teacher of {workdir}", "the teacher's folder")


def parameters(teacher: Plain | None) -> Plain | None:
    """What identifies a teacher: its parameters, not the run that they are from."""
    return teacher and {name: value for name, value in teacher.items() if name != "run"}


def check_same_source(
    old: Plain | None, new: Plain | None, name: str, files: str, where: str = ""
) -> None:
    """Raises ValueError if both identities of what a run reads are known and differ.

    name, files: what the error calls it and its files. where: which files changed, "" if unknown.
    """
    if old is None or new is None:
        return
    found = [where] * bool(where) + identity_changes(old, new)
    if identity_changes(old, new):
        raise ValueError(
            f"{name} has changed since the run began: {'; '.join(found)}. Put back {files}, or "
            "choose another --workdir"
        )


def way_on(changes: Sequence[Difference], fields: Plain, workdir: Path) -> str:
    """What to type to go on although these fields of a run in a folder would change."""
    names = [name for name, *_ in changes]
    free = next(n for n in itertools.count(2) if not Path(f"{workdir}_{n}").exists())
    flags = f"--from={shlex.quote(str(workdir))} --workdir={shlex.quote(f'{workdir}_{free}')}"
    if any(name.startswith(FOREIGN) for name in names):
        return "Choose another --workdir, or the run's own config"
    if names == [STEPS] and not lengths_left_open(fields):
        return (
            "Say what the learning rate does in the steps after that by "
            "--config.continued.schedule=extend, hold or rewarm (docs/running.md), or start a new "
            f"run from its networks: {flags}"
        )
    return f"To train its networks on with these values, start a new run: add {flags}"


def config_changes(old: Plain, new: Plain, free: tuple[str, ...] = ()) -> list[Difference]:
    """The fields, with both values, in which two configs describe different runs.

    A field that a config lacks stands for what runs do without it (training.storage.defaults).
    free: prefixes of fields that may differ, besides CHANGEABLE.
    """
    old, new = (flatten_fields(plain_fields(fill_missing_fields(config))) for config in (old, new))
    free += (DECODING,) * (0 in (old[DECODING], new[DECODING]))  # 0 leaves it open
    scheduled = length_schedules(old) and new["continued.schedule"] == REFUSE
    free += CHANGEABLE[1:] if scheduled or lengths_left_open(old) else CHANGEABLE
    return differences(
        *({k: v for k, v in c.items() if not k.startswith(free)} for c in (old, new))
    )


def changed_measures(old: Plain, new: Plain) -> list[str]:
    """The fields of MEASURING, with both values, in which two configs differ.

    Empty if the old one does not evaluate during training, since it has no curve.
    """
    old, new = (flatten_fields(plain_fields(fill_missing_fields(config))) for config in (old, new))
    if not old["evaluate.every"]:
        return []
    return differing_fields(*({name: config[name] for name in MEASURING} for config in (old, new)))


def differing_fields(old: Plain, new: Plain) -> list[str]:
    """The fields, with both values, in which two flat mappings differ."""
    return in_words(differences(old, new))


def in_words(changes: Sequence[Difference]) -> list[str]:
    """Each field with both values, sorted by name."""
    return [f"{name} ({before} there, {now} now)" for name, before, now in sorted(changes)]


def with_all_fields(config: Plain) -> ConfigDict:
    """A recorded config; each field that it lacks stands for what runs do without it."""
    return ConfigDict(plain_fields(fill_missing_fields(config)))


def check_known_fields(config: ConfigDict, run: str) -> None:
    """Raises ValueError that names fields of a recorded config that no longer exist.

    Ignores fields that may change when a run goes on. A config without objective.name is refused.
    """
    if not config.objective.get("name"):
        raise ValueError(f"{run} holds no config of a run: it has no objective.name")
    found = [name for name in removed_fields(config.to_dict()) if not name.startswith(CHANGEABLE)]
    if found:
        raise ValueError(
            f"{run} was made by another version of Fewstep, and this one has no "
            f"{', '.join(found)}; use that version, or train again"
        )


def as_dict(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values: tuples become lists."""
    return plain_fields(config.to_dict())


def plain_fields(fields: Plain) -> dict[str, Any]:
    """Fields as plain JSON values: tuples become lists."""
    return json.loads(json.dumps(fields))


def flatten_fields(tree: Plain, prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    fields = {}
    for name, value in tree.items():
        fields |= (
            flatten_fields(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {prefix + name: value}
        )
    return fields
