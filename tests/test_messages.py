import pytest

from fewstep.configs.methods import METHODS
from fewstep.messages import (
    common_differences,
    did_you_mean,
    differences,
    format_seconds,
    nearest_name,
    shell_flags,
    unknown_choice,
)


@pytest.mark.parametrize(
    ("name", "names", "found"),
    [
        ("learning_rat", ["learning_rate", "eps"], "learning_rate"),
        ("CD", METHODS, "cd"),
        ("l2", ["pseudo_huber", "squared_l2"], "squared_l2"),
        ("foo", METHODS, ""),
        ("flow", METHODS, "flow_matching"),  # rather than cd_flow, a part of which it is
        ("meanflow", METHODS, "mean_flow"),
        ("improved_meanflow", METHODS, "improved_mean_flow"),
        ("trakt", METHODS, "tract"),
        ("moment_match", METHODS, "moment_matching"),
        ("reflw", METHODS, "reflow"),
        ("live", METHODS, "live_reflow"),
        ("guidence", METHODS, "guidance"),
        ("imm", METHODS, ""),
        ("edn", METHODS, "edm"),
        ("tow", ["one", "two"], "two"),
        ("path", ["retinopathy_detection"], ""),
        ("consistancy", METHODS, ""),
        ("", METHODS, ""),
        ("x", ["max", "xyz"], ""),
        ("h10", ["a100", "h100"], "h100"),
    ],
)
def test_the_nearest_name_is_found_and_nonsense_is_not(name, names, found):
    assert nearest_name(name, names) == found


def test_a_message_names_the_choices_and_a_guess_only_where_there_is_one():
    assert unknown_choice("a.b", "lineer", ["linear", "ve"]) == (
        "a.b='lineer' is not one of linear, ve; did you mean 'linear'?"
    )
    assert unknown_choice("a.b", 3, ["linear"]) == "a.b=3 is not one of linear"
    assert did_you_mean("mode", "--{}") == "; did you mean --mode?" and did_you_mean("") == ""


def test_a_command_can_be_typed_as_it_is_printed():
    assert shell_flags("sample", workdir="runs/x") == "--mode=sample --workdir=runs/x"
    assert shell_flags("sample", workdir="my runs/it's") == (
        """--mode=sample '--workdir=my runs/it'"'"'s'"""
    )


def test_differences_are_told_in_the_order_of_the_fields():
    first = {"steps": 1, "same": 2, "lost": 3}
    second = {"new": 4, "same": 2, "steps": None}
    assert differences(first, second) == [("steps", 1, None), ("lost", 3, None), ("new", None, 4)]
    assert differences(first, dict(first)) == []
    assert common_differences(first, second) == [("steps", 1, None)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.26, "1.3 s"), (150, "2.5 minutes"), (3 * 3600, "3.0 hours"), (5 * 86400, "5.0 days")],
)
def test_times_are_readable(seconds, text):
    assert format_seconds(seconds) == text
