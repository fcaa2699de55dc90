from fewstep.modes.run_page import PAGE, write_run_page
from tests.eval.evaluated import evaluated_run


def test_a_run_that_was_evaluated_gets_a_page(tmp_path, capsys):
    (tmp_path / "new").mkdir()
    write_run_page(tmp_path / "new")
    assert not (tmp_path / "new" / PAGE).exists()
    run = evaluated_run(tmp_path / "run", steps=(1, 4))
    write_run_page(run)
    captured = capsys.readouterr()
    assert "<html" in (run / PAGE).read_text() and f"{run / PAGE} shows" in captured.out


def test_a_page_that_cannot_be_written_does_not_fail_the_run(tmp_path, capsys):
    run = evaluated_run(tmp_path / "run", steps=(1,))
    (run / PAGE).mkdir()
    write_run_page(run)
    assert "report.html is not written" in capsys.readouterr().err
