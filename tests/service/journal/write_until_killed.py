"""Run by a test: writes tiles as fast as it can and says so after each commit, until it is killed."""

from __future__ import annotations

import sys
from pathlib import Path

from journal_scenes import SINKS, outcome, started, tile_message

from fusar_edge.service.journal import Journal

journal = Journal.open(Path(sys.argv[1]), SINKS)
scene_id = started(journal, tiles=1_000_000)
index = len(journal.done_tiles(scene_id))
while True:
    journal.tile_done(scene_id, outcome(index, "x" * 2000), [tile_message(scene_id, index)])
    print(index, flush=True)
    index += 1
