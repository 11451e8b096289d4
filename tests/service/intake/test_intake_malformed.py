"""Whatever is sent: a refusal in words, no crash, nothing left on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from intake_station import Open, Station
from malformed_files import good_files, malformed_files

from fusar_edge.errors import InputError
from fusar_edge.service.settings import LimitSettings


def test_every_malformed_file_is_refused_and_leaves_nothing(station: Station, tmp_path: Path) -> None:
    kinds = set()
    for sent in malformed_files(400, seed=1):
        path = station.upload(sent.data)
        with pytest.raises(InputError) as refused:
            station.intake.offer(path, name=sent.name, source="upload", owned=True)
        message = str(refused.value)
        assert str(tmp_path) not in message, sent.kind
        assert "Traceback" not in message, sent.kind
        assert len(message) < 700, sent.kind
        assert not station.left, sent.kind
        kinds.add(sent.kind)
    assert len(kinds) > 300
    assert not station.journal.scenes()
    assert not station.wakes


def test_every_layout_of_a_good_scene_is_taken(station_with: Open) -> None:
    station = station_with(limits=LimitSettings(free_disk_mib=1))
    for layout, data in good_files().items():
        row, new = station.intake.offer(station.upload(data), name=f"{layout}.tif", source="upload", owned=True)
        assert new
        assert row.path.read_bytes() == data


def test_the_files_are_the_same_for_a_seed_and_others_for_another() -> None:
    first, again, other = (list(malformed_files(160, seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
