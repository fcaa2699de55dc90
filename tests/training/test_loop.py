from training.loop import Report


def test_a_row_of_the_players_losses_is_no_evaluation(tmp_path):
    report = Report(tmp_path, 0, 4, 8, 1, {})
    report.write(2, {"generator/loss": 1.0, "fake_score/loss": 2.0})
    assert not report.evaluated(2)
    report.evaluation(2, {"frechet_1": 3.0})
    assert report.evaluated(2) and not report.evaluated(4)
    report.close()
