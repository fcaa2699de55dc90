"""--mode=doctor: check, with the flags of a long job, what could make it fail.

All processes run each check at the same time: first those of `ALONE`, of what each has, then those
of `TOGETHER`, whether they compute together and see the same folder. Process 0 prints one line per
check. A failed check, of any process, stops only the checks that need it. The doctor leaves no
files but decoded images and a fitted codec, in data.dir.
"""

import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import jax

from fewstep.modes.checks import ALONE, Check
from fewstep.modes.joint_checks import TOGETHER
from fewstep.modes.mode import CONFIG, FROM, PROFILE, WORKDIR, Mode
from fewstep.modes.next_job import NextJob
from fewstep.modes.request import Request
from fewstep.training.cluster.processes import apart, gather

OK, FAILED, LEFT_OUT = "ok", "FAILED", "-"


class Finding(NamedTuple):
    """The finding of a check in one process. who: the process and its host."""

    status: str
    text: str
    who: str


def run_checks(request: Request) -> None:
    """Run and print all checks. Raises ValueError in all processes if one of them failed."""
    job = NextJob(request)
    reports: list[dict[str, Finding]] = [{} for _ in range(jax.process_count())]
    for name, check in (ALONE | TOGETHER).items():
        # A check of all processes together runs in all of them or in none.
        with apart() if name in ALONE else nullcontext():
            here = run_check(job, check, checks_passed_by_all(reports))
        for report, found in zip(reports, gather(here), strict=True):
            report[name] = Finding(*found)
    lines = {name: list(format_check(name, [r[name] for r in reports])) for name in reports[0]}
    if jax.process_index() == 0:
        print("\n".join(line for told_of in lines.values() for line in told_of), flush=True)
    failed = [name for name, told_of in lines.items() if told_of[0].startswith(FAILED)]
    if failed:
        raise ValueError(f"{len(failed)} of {len(lines)} checks failed: {', '.join(failed)}")


def checks_passed_by_all(reports: Sequence[Mapping[str, Finding]]) -> set[str]:
    """Return the names of the checks that passed in all processes."""
    names = reports[0].keys()
    return {name for name in names if all(report[name].status == OK for report in reports)}


def run_check(job: NextJob, check: Check, passed: set[str]) -> Finding:
    """Run a check unless one that it needs has failed."""
    lacking = [name for name in check.needs if name not in passed]
    if lacking:
        return make_finding(LEFT_OUT, f"not checked: it needs {', '.join(lacking)}")
    try:
        return make_finding(OK, check.run(job))
    except Exception as error:  # whatever the error, the other checks go on
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        return make_finding(FAILED, kind + " ".join(str(error).split()))


def make_finding(status: str, text: str) -> Finding:
    """Return a finding of this process."""
    return Finding(status, text, f"process {jax.process_index()} (host {socket.gethostname()})")


def format_check(name: str, findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the lines of a check: one, or one for each process that failed or differs."""
    failed = [found for found in findings if found.status == FAILED]
    left_out = [found for found in findings if found.status == LEFT_OUT]
    differing = len({found.text for found in findings}) > 1
    if len(failed) == len(findings) and not differing:
        yield format_finding(name, failed[0])
    elif failed:
        yield from (format_finding(name, found, found.who) for found in failed)
    elif not left_out and differing and (ALONE | TOGETHER)[name].equal:
        yield from (
            format_finding(name, found._replace(status=FAILED), who)
            for found, who in deviating_findings(findings)
        )
    else:
        yield format_finding(name, [*left_out, *findings][0])


def deviating_findings(findings: Sequence[Finding]) -> Iterator[tuple[Finding, str]]:
    """Yield (finding, who) for processes that differ from the majority, then for the majority.

    Without a majority yields all findings, since any of them may be right.
    """
    ((common, count),) = Counter(found.text for found in findings).most_common(1)
    if 2 * count <= len(findings) or count < 2:
        yield from ((found, found.who) for found in findings)
        return
    yield from ((found, found.who) for found in findings if found.text != common)
    usual = next(found for found in findings if found.text == common)
    yield usual, f"the other {count} processes"


def format_finding(name: str, found: Finding, who: str = "") -> str:
    """Return the printed line of a finding."""
    return f"{found.status:6}  {name:11}  {who}{': ' if who else ''}{found.text}"


# `alike=False`, since the doctor itself reports flags that differ.
DOCTOR = Mode(
    run_checks,
    "Check a long job before it starts: data, network, disk, devices, processes.",
    {**CONFIG, **WORKDIR, **FROM, **PROFILE},
    together=True,
    alike=False,
)
