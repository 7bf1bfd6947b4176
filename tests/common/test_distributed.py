"""What ranks owe one another."""

from __future__ import annotations

import time

import pytest

from common import distributed
from common.errors import UserError
from tests.faults.ranks import run_ranks


def test_ranks_leave_together_so_that_a_launcher_ends_none_of_them_at_work(tmp_path) -> None:
    def work(rank: int) -> bool:
        with distributed.joined("cpu"):
            if rank == 0:
                time.sleep(0.3)
                (tmp_path / "written").touch()
        return (tmp_path / "written").exists()

    assert run_ranks(2, work, tmp_path) == [True, True]


def test_a_rank_that_fails_leaves_at_once(tmp_path) -> None:
    def work(rank: int) -> str:
        try:
            with distributed.joined("cpu"):
                if rank == 1:
                    raise UserError("no such folder")
        except UserError as error:
            return str(error)
        except RuntimeError:  # the connection to the other rank is gone
            return "left alone"
        return "nobody failed"

    assert run_ranks(2, work, tmp_path) == ["left alone", "no such folder"]


def test_one_process_needs_no_group() -> None:
    with pytest.raises(UserError, match="no such folder"), distributed.joined("cpu") as device:
        assert device.type == "cpu" and distributed.world_size() == 1
        raise UserError("no such folder")
