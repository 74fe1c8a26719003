"""serve.toml, and what is wrong with one."""

import re
from pathlib import Path

import pytest

from haloae.errors import ConfigError
from haloae.server.settings import Settings, read_settings


def test_what_a_file_leaves_out_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text('[queue]\nbatch = 4\n[http]\nnames = ["line3.plant"]\n')
    found = read_settings(path)
    assert (found.queue.batch, found.http.names) == (4, ("line3.plant",))
    assert found.queue.threads == read_settings(None).queue.threads >= 1
    assert found.models == Settings().models


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[queue]\nbath = 4", "setting queue.bath: no such setting"),
        ("[queue]\nbatch = 0", "setting queue.batch: input should be greater than or equal to 1"),
        ("queue = 4", "setting queue:"),
        ("[queue", "not a TOML file"),
    ],
)
def test_a_wrong_file_is_one_sentence_with_its_name(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(sentence)) as error:
        read_settings(path)
    assert str(error.value).startswith(str(path))
    assert str(error.value).count(str(path)) == 1
