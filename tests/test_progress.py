import sys

from fewstep import progress


class Terminal:
    """Standard error, taken for a terminal."""

    def __init__(self, under):
        self.under = under

    def isatty(self):
        return True

    def __getattr__(self, name):
        return getattr(self.under, name)


def test_a_bar_is_drawn_on_a_terminal_alone(monkeypatch, capsys):
    assert list(progress.progress_bar(range(3), desc="counting")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal(sys.stderr))
    assert list(progress.progress_bar(range(3), desc="counting")) == [0, 1, 2]
    assert "counting: 100%" in capsys.readouterr().err
    assert list(progress.progress_bar(range(3), desc="counting", silent=True)) == [0, 1, 2]
    progress.note("a line")
    assert capsys.readouterr().err == "a line\n"


def test_a_notebook_shows_bars(monkeypatch, capsys):
    assert not progress.shows_bars()
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert progress.shows_bars()
    assert list(progress.progress_bar(range(3), desc="counting")) == [0, 1, 2]
    assert "counting: 100%" in capsys.readouterr().err
