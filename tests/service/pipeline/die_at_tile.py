"""Run by a test: works on the scenes of a journal, and dies, as a library would, at the tile of one grey."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pipeline_fakes import Ended, FakeBackend, fake_pipeline, small_tiles

from fusar_edge.service.journal import Journal

FATAL = 0.3


def ask(question: str, grey: float) -> None:
    if abs(grey - FATAL) < 0.02:
        os._exit(9)


bundle = small_tiles()
journal = Journal.open(Path(sys.argv[1]), ["sink"])
backend = FakeBackend(bundle)
backend.before_question = ask
ended = Ended(journal)
pipeline = fake_pipeline(bundle, journal, backend, model={"vision_batch": 1, "ready_tiles": 1})
pipeline.start()
ended.until(lambda: not journal.open_scenes())
pipeline.stop()
journal.close()
