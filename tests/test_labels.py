from __future__ import annotations

from pathlib import Path

import pytest

from sovit.errors import ConfigError
from sovit.labels import imagenet_1k, read_labels


def test_imagenet_has_a_thousand_different_names_in_the_order_of_their_ids() -> None:
    names = imagenet_1k()
    assert len(names) == len(set(names.values())) == 1000
    assert list(names) == sorted(names)
    assert all(len(wnid) == 9 and wnid[0] == "n" and wnid[1:].isdigit() for wnid in names)
    # Positions everybody knows, and the two names that WordNet gives twice.
    values = list(names.values())
    assert [values[index] for index in (0, 207, 281, 999)] == ["tench", "golden retriever", "tabby", "toilet tissue"]
    assert (names["n02012849"], names["n03126707"]) == ("crane (bird)", "crane (machine)")


def test_labels_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("cat\ndog, the\n")
    assert read_labels(str(path)) == ("cat", "dog, the")
    path.write_bytes("\ufeffcat\r\n dog\u2028the \r\n".encode())
    assert read_labels(str(path)) == ("cat", "dog\u2028the")
    assert len(read_labels("imagenet-1k")) == 1000
    for text, message in (("cat\n\ndog", "line 2 is empty"), ("cat\ndog\ncat", "line 3 names 'cat' once more")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_labels(str(path))
    path.write_bytes(b"\xff\xfe")
    for source in (path, tmp_path / "none.txt"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_labels(str(source))
