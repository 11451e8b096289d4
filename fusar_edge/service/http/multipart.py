"""One file out of `multipart/form-data`, piece by piece: nothing is kept in memory or in a folder of its own."""

from __future__ import annotations

from typing import Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException

FIELD = "file"
HEADER_BYTES = 8192
"""Of all headers of a part."""


class FilePart:
    """Fed with the body as it arrives, gives back the bytes of the part `file`. 400 where the form is broken."""

    def __init__(self, content_type: str) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if not boundary:
            raise HTTPException(400, "multipart/form-data without a boundary: let the HTTP client write the header")
        self.name = ""
        """File name that the part states, as given."""
        self.seen = self.ended = False
        self._pieces: list[bytes] = []
        self._header: list[bytes] = []
        self._value: list[bytes] = []
        self._header_bytes = 0
        self._disposition = ""
        calls: Any = {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._collect(self._header, data[start:end]),
            "on_header_value": lambda data, start, end: self._collect(self._value, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": lambda data, start, end: self._pieces.append(data[start:end]),
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, calls)
        except FormParserError as error:
            raise HTTPException(400, f"broken multipart/form-data: {error}") from None

    def feed(self, body: bytes) -> bytes:
        """The file's bytes in this piece of the body."""
        try:
            self._parser.write(body)
        except FormParserError as error:
            raise HTTPException(400, f"broken multipart/form-data: {error}") from None
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data

    def close(self) -> None:
        """The body is over: 400 where the form is not."""
        if not self.ended:
            raise HTTPException(400, "multipart/form-data ends in the middle: its closing boundary is missing")
        if not self.seen:
            raise HTTPException(400, f"the form has no part {FIELD!r}: it is the scene")

    def _begin(self) -> None:
        self._header_bytes, self._disposition = 0, ""

    def _collect(self, into: list[bytes], data: bytes) -> None:
        self._header_bytes += len(data)
        if self._header_bytes > HEADER_BYTES:
            raise HTTPException(400, f"a part of the form has more than {HEADER_BYTES} bytes of headers")
        into.append(data)

    def _end_header(self) -> None:
        if b"".join(self._header).lower() == b"content-disposition":
            self._disposition = b"".join(self._value).decode("latin-1")
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        field = options.get(b"name", b"").decode("utf-8", "replace")
        if field != FIELD:
            raise HTTPException(
                400, f"the form has a part {field[:40]!r}: it takes {FIELD!r} alone; all else goes into the query"
            )
        if self.seen:
            raise HTTPException(400, f"the form has two parts {FIELD!r}: send one scene at a time")
        self.seen = True
        self.name = options.get(b"filename", b"").decode("utf-8", "replace")

    def _end(self) -> None:
        self.ended = True
