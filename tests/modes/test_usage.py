"""--help shows the flags of the requested mode and exits with code 0."""

import pytest
from absl import flags

import main
from fewstep.modes import MODES


def help_text(capsys, *arguments):
    """Return what --help prints after the arguments."""
    with pytest.raises(SystemExit) as ended:
        main.parse_flags(["main.py", *arguments, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("mode", MODES)
def test_help_has_the_modes_and_the_flags_of_the_one_asked_for(capsys, mode):
    text = help_text(capsys, f"--mode={mode}")
    assert text == help_text(capsys, "--mode", mode)
    for name, other in MODES.items():
        assert f"\n  {name}" in text and other.summary.split(";")[0] in text
    named = {line.split()[0] for line in text.splitlines() if line.startswith("  --")}
    joins = {f"--{flag.name}" for flag in main.JOINING} if MODES[mode].together else set()
    own = {f"--{flag}" for flag in MODES[mode].flags}
    takes_fields = "--config" in own or MODES[mode].replaces
    assert named == own | joins | {"--traceback"} | ({"--config.FIELD"} if takes_fields else set())


def test_help_without_a_mode_is_that_of_training(capsys):
    assert help_text(capsys) == help_text(capsys, "--mode=train")


def test_every_flag_says_what_it_is_for():
    for mode in MODES.values():
        for name, flag in mode.flags.items():
            assert flag.help and name in flags.FLAGS
