"""What engines say reaches whoever writes the run, however late it begins to listen."""

import pytest

from weft.core.errors import EngineError
from weft.training.job import Job
from weft.training.news import News
from weft.training.train import train


def test_who_listens_late_hears_all_of_it():
    news, early, late = News(), list[str](), list[str]()
    news.to(early.append)
    news("a worker is started again")
    news.to(late.append)
    news("and again")
    assert early == late == ["a worker is started again", "and again"]


def test_whatever_runs_beside_a_run_ends_with_it_also_when_it_fails(
    resolved, tmp_path, monkeypatch
):
    closed = []
    monkeypatch.setattr(Job, "close", lambda job: closed.append(job))
    train(resolved("steps=1", "eval.every=0", "keep=last"), tmp_path / "sound")
    assert len(closed) == 1

    def gone(*_):
        raise EngineError("no worker is left")

    monkeypatch.setattr(Job, "scorer", gone)
    with pytest.raises(EngineError):
        train(resolved("steps=1", "eval.every=0", "keep=last"), tmp_path / "failed")
    assert len(closed) == 2
