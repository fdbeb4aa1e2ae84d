"""Whoever asks a gateway for what it has once, need not know how many workers it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamgw.process.central import Central
from tests.support.several import stage_on


@pytest.mark.parametrize("workers", [1, 2])
async def test_one_worker_has_it_and_so_has_the_office_of_several(tmp_path: Path, workers: int) -> None:
    wanted = {name for name in vars(Central) if not name.startswith("_")}

    async with stage_on(tmp_path, workers) as stage:
        missing = {name for name in wanted if not hasattr(stage.central, name)}

        assert missing == set()
        assert len(stage.central.sockets.bound()) == 1
        assert stage.central.started_at > 0
        assert not stage.central.draining
