"""What was accepted, what was answered, and what is still to be told: one SQLite file that survives kill -9.

database.py   connections, the one writer, errors of the disk
tables.py     the tables, by version
scenes.py     accepted -> running -> done or failed
tiles.py      outcomes of tiles, once each
outbox.py     messages that sinks have not taken yet
events.py     what happened, in order, for whoever watches
watched.py    files of the watch folder that were seen
journal.py    all of it: Journal
"""

from fusar_edge.service.journal.journal import Journal
from fusar_edge.service.journal.records import Event, Message, MessageKind, NewScene, SceneRow, Status, TileOutcome

__all__ = ["Event", "Journal", "Message", "MessageKind", "NewScene", "SceneRow", "Status", "TileOutcome"]
