"""Test data files: the one-line errors for missing and damaged files, and failed downloads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tune_sparsity.experiments.base import DataUnavailable
from tune_sparsity.experiments.data.files import check_md5, downloading, read_checked

CONTENT = b"1 2:3\n"
MD5 = hashlib.md5(CONTENT).hexdigest()


def test_read_checked_returns_the_content_of_an_undamaged_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(CONTENT)
    assert read_checked(tmp_path / "a.txt", MD5, "somebody's a.txt") == CONTENT
    check_md5(CONTENT, MD5)


def test_missing_file_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "uci" / "a.txt"
    with pytest.raises(DataUnavailable) as error:
        read_checked(path, MD5, "somebody's a.txt")
    message = str(error.value)
    assert message.startswith(f"{path} is missing")
    assert "somebody's a.txt" in message
    assert "--data-dir" in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"\n", b"1 2:4\n"])
def test_damaged_file_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataUnavailable, match=r"a\.txt is damaged \(its MD5 checksum .* somebody's a\.txt$") as error:
        read_checked(tmp_path / "a.txt", MD5, "somebody's a.txt")
    assert "\n" not in str(error.value)


def test_a_folder_in_the_place_of_a_file_counts_as_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(DataUnavailable, match="is damaged"):
        read_checked(tmp_path / "a.txt", MD5, "somebody's a.txt")


def failed_download(root: Path, part: Path, error: Exception) -> None:
    with downloading("The set", root, "a/b"):
        part.parent.mkdir(parents=True)
        if part.suffix:
            part.touch()
        raise error


def test_failed_download_leaves_no_empty_folders(tmp_path: Path) -> None:
    root = tmp_path / "new" / "root"
    with pytest.raises(DataUnavailable, match=r"^The set is not in .* downloaded \(two lines\): .* holds a/b"):
        failed_download(root, root / "a", RuntimeError("two\nlines"))  # before there was a folder a
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_keeps_the_files_that_it_has_written(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable):
        failed_download(tmp_path, tmp_path / "a" / "some.part", OSError("no network"))
    assert (tmp_path / "a" / "some.part").is_file()


def test_downloading_passes_on_exceptions_that_are_no_download_errors(tmp_path: Path) -> None:
    with pytest.raises(KeyError), downloading("The set", tmp_path, "a"):
        raise KeyError("a mistake in the program")


def test_the_messages_of_a_download_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with downloading("The set", tmp_path, "a"):
        print("Downloading")
    assert capsys.readouterr() == ("", "Downloading\n")
