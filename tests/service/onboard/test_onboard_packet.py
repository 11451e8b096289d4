from __future__ import annotations

import random
import struct

import msgspec
import numpy as np
import pytest

from fusar_edge.errors import InputError
from fusar_edge.service.onboard.ground import read_packet
from fusar_edge.service.onboard.packet import HEADER, STEP_DEG, decode, encode_body, sealed
from fusar_edge.service.onboard.records import Kind, Record, SceneHead

CAPTION = "Terrain: Open water without land\nFunctionality: Shipping water\nRoads: No roads"


def head(rng: random.Random, **changes: object) -> SceneHead:
    fields = {
        "id": f"{rng.getrandbits(64):016x}",
        "name": f"S1A_IW_GRDH_1SDV_{rng.randrange(10**6)}-vv.tiff",
        "time": rng.choice([None, 0, 1_700_000_000]),
        "simulated": rng.random() < 0.5,
        "status": rng.choice(["queued", "running", "done", "failed"]),
        "lon": rng.uniform(-180, 180),
        "lat": rng.uniform(-80, 80),
        "width": rng.randrange(1, 30_000),
        "height": rng.randrange(1, 30_000),
        "axes": (3.0, -0.5, -0.5, -3.0),
        "tiles": rng.randrange(4000),
        "answered": rng.randrange(4000),
        "skipped": rng.randrange(4000),
        "not_parsed": rng.randrange(5),
    }
    return SceneHead(**{**fields, **changes})  # type: ignore[arg-type]


def record(rng: random.Random, scene: SceneHead) -> Record:
    kind = rng.choice(list(Kind))
    if kind is Kind.scene:
        return Record(kind, 0, 0.0, 0.0, 0, 0, 100)
    text = {Kind.caption: CAPTION + rng.choice(["", "."]), Kind.classify: rng.choice(["tanker", "Frachter ü"])}
    place = (scene.lon + rng.uniform(-1, 1), scene.lat + rng.uniform(-1, 1))
    size = (rng.randrange(1, 600), rng.randrange(1, 600))
    number = rng.randrange(512) if kind in (Kind.count, Kind.grid, Kind.detection) else 0
    return Record(kind, rng.randrange(4000), *place, *size, rng.randrange(101), text.get(kind, "ship"), number)


def groups(seed: int, scenes: int, records: int) -> list[tuple[SceneHead, list[Record]]]:
    rng = random.Random(seed)
    heads = [head(rng) for _ in range(scenes)]
    return [(h, [record(rng, h) for _ in range(rng.randrange(records + 1))]) for h in heads]


def comparable(records: list[Record]) -> list[tuple[object, ...]]:
    """Places left out; they are compared by distance."""
    return sorted((r.kind, r.tile, r.width, r.height, r.confidence, r.text, r.number) for r in records)


@pytest.mark.parametrize("seed", range(12))
def test_a_packet_gives_back_what_was_packed(seed: int) -> None:
    packed = groups(seed, scenes=seed % 5 + 1, records=40)
    data, crc = sealed(encode_body(packed), 7 + seed, 1_800_000_000)
    packet = decode(data)
    assert (packet.sequence, packet.made_at, packet.crc, packet.size) == (7 + seed, 1_800_000_000, crc, len(data))
    expected = {h.id: (h, records) for h, records in packed}
    assert {h.id for h, _ in packet.groups} == set(expected)
    for found, records in packet.groups:
        wanted, own = expected[found.id]
        assert comparable(records) == comparable(own)
        assert abs(found.lon - wanted.lon) <= STEP_DEG / 2 + 1e-9
        names = ("name", "time", "simulated", "status", "width", "height", "axes", "tiles", "answered", "not_parsed")
        assert all(getattr(found, name) == getattr(wanted, name) for name in names)


def test_places_are_off_by_half_a_step_at_most() -> None:
    ((scene, _),) = groups(1, scenes=1, records=0)
    rng = random.Random(2)
    own = [Record(Kind.detection, i, scene.lon + rng.uniform(-2, 2), scene.lat + i / 99, 1, 1, 1) for i in range(99)]
    ((_, found),) = decode(sealed(encode_body([(scene, own)]), 1, 1)[0]).groups
    errors = [(abs(a.lon - b.lon), abs(a.lat - b.lat)) for a, b in zip(own, found, strict=True)]
    assert np.max(errors) <= STEP_DEG / 2 + 1e-9


def test_the_order_in_which_records_come_changes_no_byte() -> None:
    packed = groups(4, scenes=4, records=30)
    shuffled = [(h, random.Random(1).sample(records, len(records))) for h, records in reversed(packed)]
    assert encode_body(shuffled) == encode_body(packed)


@pytest.mark.parametrize("bit", [0, 100, 300, 777, 1500])
def test_a_bit_that_flips_on_the_way_is_found(bit: int) -> None:
    data = bytearray(sealed(encode_body(groups(2, 3, 30)), 5, 1)[0])
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InputError):
        decode(bytes(data))


@pytest.mark.parametrize("length", [0, 1, 18, 19, 60, -1])
def test_a_packet_that_is_cut_short_is_refused(length: int) -> None:
    data = sealed(encode_body(groups(2, 3, 30)), 5, 1)[0]
    with pytest.raises(InputError, match=r"downlink|CRC"):
        decode(data[:length])


def test_a_packet_of_another_format_is_refused_by_its_number() -> None:
    data = bytearray(sealed(encode_body(groups(2, 1, 3)), 5, 1)[0])
    data[2] = 9
    with pytest.raises(InputError, match="format 9"):
        decode(bytes(data))


def test_no_bytes_with_a_right_crc_do_more_than_be_refused() -> None:
    rng = random.Random(0)
    body = encode_body(groups(3, 3, 20))
    refused = 0
    for _ in range(400):
        changed = bytearray(body)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(HEADER.size, len(changed))] = rng.randrange(256)
        if rng.random() < 0.3:
            changed[11:15] = struct.pack(">I", rng.choice([0, 1, 2**31, rng.randrange(len(body))]))
        data, _ = sealed(bytes(changed), 1, rng.choice([1, 2**32 - 1]))
        try:
            msgspec.json.encode(read_packet(data))
        except InputError:
            refused += 1
    assert refused > 200


def test_a_packet_that_would_unpack_to_more_than_allowed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = sealed(encode_body(groups(2, 3, 30)), 5, 1)[0]
    for name, value in (("LARGEST", 100), ("MOST_RECORDS", 20)):
        with monkeypatch.context() as changed, pytest.raises(InputError, match=r"does not end|more than 20"):
            changed.setattr(f"fusar_edge.service.onboard.packet.{name}", value)
            decode(data)
    assert len(decode(data).groups) == 3


def test_a_known_packet_is_still_read() -> None:
    """Packets of format 1 that are in the air when the ground is updated; made with the first version of it."""
    packet = decode(bytes.fromhex(GOLDEN))
    ((scene, records),) = packet.groups
    assert (packet.receipt, scene.id, scene.name, scene.status) == (GOLDEN_RECEIPT, "0123456789abcdef", "a.tif", "done")
    assert [(r.kind, r.text, r.number) for r in records] == [(Kind.detection, "ship", 2), (Kind.caption, CAPTION, 0)]


GOLDEN = (
    "4645010000000c6b49d20000000060ef84a9620000e11b7e07832007fd2d3f07cd909a907b92c1bba73b0541763bd4132dce"
    "63bdc2b6c306b393bb023797275e0b59daaeaf456c1c7ff00b7e8ef69779fb065436780b223d5f3b949911d2a447d35cf06e"
    "7e5df83c445942b2c5a5fff3cc0c004b0455550ca01067a03020d09cc00000"
)
GOLDEN_RECEIPT = "12-ef84a962"
