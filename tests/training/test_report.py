from training.report import Report, evaluations


def test_a_row_of_the_players_losses_is_no_evaluation(tmp_path):
    with Report(tmp_path, 0, 4, 8, 1, {}) as report:
        report.write(2, {"generator/loss": 1.0, "fake_score/loss": 2.0})
        assert not report.evaluated(2)
        report.evaluation(2, {"frechet_1": 3.0})
        assert report.evaluated(2) and not report.evaluated(4)
    assert evaluations(tmp_path) == {2: {"frechet_1": 3.0}}
