"""The service's TOML, and what the command line changes of it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fusar_edge.errors import RecipeError
from fusar_edge.service.settings import ServiceSettings, merged_settings, read_settings

TEXT = """
bundle = "bundles/orin"
data_dir = "station"
[watch]
folder = "in"
[mqtt]
host = "broker"
[stac]
hosts = ["stac.example.org"]
roots = ["/data/scenes"]
"""


def test_a_file_sets_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(TEXT)
    found = read_settings(tmp_path / "s.toml")
    assert (found.bundle, found.data_dir, found.watch.folder) == ("bundles/orin", Path("station"), Path("in"))
    assert found.stac.roots == (Path("/data/scenes"),)
    assert found.limits == ServiceSettings().limits


def test_the_command_line_wins_over_the_file_and_what_it_does_not_name_stays(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(TEXT)
    found = merged_settings(
        tmp_path / "s.toml", {"bundle": "default", "data_dir": None}, watch={"folder": None}, http={"port": 0}
    )
    assert (found.bundle, found.data_dir, found.watch.folder, found.http.port) == (
        "default",
        Path("station"),
        Path("in"),
        0,
    )
    assert merged_settings(None, {}) == ServiceSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[watch]\nfolder = 3", r"s\.toml: Expected a path, got 3"),
        ("[watch]\nfolders = 'x'", r"s\.toml: .*unknown field `folders`"),
        ("[http]\nport = 70000", r"s\.toml: .*65535"),
        ("not toml", r"s\.toml: "),
    ],
)
def test_what_a_file_may_not_say_is_refused_with_its_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_settings(tmp_path / "s.toml")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml: cannot be read"):
        read_settings(tmp_path / "none.toml")


def test_the_documentation_lists_every_key_and_is_read_as_it_stands(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "service.md").read_text().split("```toml\n")[1].split("```")[0]
    (tmp_path / "s.toml").write_text(text)
    read_settings(tmp_path / "s.toml")

    def keys(value: dict, kind: type) -> None:
        fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
        assert value.keys() == fields.keys()
        for name, inner in fields.items():
            if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
                keys(value[name], inner)

    keys(msgspec.toml.decode(text), ServiceSettings)
