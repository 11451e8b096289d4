from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from journal_scenes import SINKS, started

from fusar_edge.service.journal import Journal

HERE = Path(__file__).parent
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), *filter(None, sys.path)])}
SCRIPT = [sys.executable, "-W", "error"]


def test_a_scene_killed_at_any_statement_is_resumed_without_loss_or_doubles(tmp_path: Path) -> None:
    command = [*SCRIPT, str(HERE / "crash_at_statement.py"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENV, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 50


def test_every_tile_said_to_be_written_is_there_after_kill_9(tmp_path: Path) -> None:
    path, spoken = tmp_path / "journal.sqlite", -1
    for tiles in (1, 7, 40):
        with subprocess.Popen(
            [*SCRIPT, str(HERE / "write_until_killed.py"), str(path)], stdout=subprocess.PIPE, env=ENV
        ) as writer:
            assert writer.stdout is not None
            for _ in range(tiles):
                spoken = int(writer.stdout.readline())
            writer.kill()
            spoken = max([spoken, *(int(line) for line in writer.stdout.read().split(b"\n")[:-1])])
        journal = Journal.open(path, SINKS)
        scene_id = started(journal)
        done = journal.done_tiles(scene_id)
        assert done in (set(range(spoken + 1)), set(range(spoken + 2)))  # one may be written and not yet spoken of
        row = journal.scene(scene_id)
        assert row is not None
        assert row.tiles_done == len(done) == journal.outbox_count("mqtt")
        assert journal.read("PRAGMA integrity_check")[0][0] == "ok"
        journal.close()
