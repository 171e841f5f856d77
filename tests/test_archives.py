"""Zip files that mean harm, or are broken: each is refused with its reason; nothing lies outside its folder."""

from __future__ import annotations

import io
import os
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from factories import png
from storage.errors import UserError
from storage.imports import archives
from storage.imports.archives import Allowance, only_folder_in, safe_name, unpack

ROWS = b'{"prompt": "A?", "images": ["a.png"]}\n'


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "private" / "in"
    folder.mkdir(parents=True)
    return folder


def zipped(path: Path, files: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return path


def everything_below(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_rows_and_pictures_come_out_and_nothing_else(tmp_path: Path, into: Path) -> None:
    files = {
        "data/rows.jsonl": ROWS,
        "data/images/a.PNG": png(),
        "data/images/b.svg": b"<svg/>",
        "data/run.py": b"import os",
        "data/more.zip": b"PK",
        "data/README": b"hello",
        "__MACOSX/data/._rows.jsonl": b"junk",
        "data/.DS_Store": b"junk",
    }
    found = unpack(zipped(tmp_path / "a.zip", files), into)
    assert everything_below(into) == {"data/rows.jsonl", "data/images/a.PNG"} == set(found.files)
    assert dict(found.passed) == {".svg": 1, ".py": 1, ".zip": 1, "no ending": 1}
    assert only_folder_in(into) == into / "data"
    assert (into / "data" / "rows.jsonl").read_bytes() == ROWS


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../evil.jsonl", "would lie outside of its folder"),
        ("a/../../evil.jsonl", "would lie outside"),
        ("..\\evil.jsonl", "would lie outside"),
        ("/etc/evil.jsonl", "would lie outside"),
        ("C:\\evil.jsonl", "would lie outside"),
        ("a//b.jsonl", "name cannot be used"),
        ("./b.jsonl", "name cannot be used"),
        ("a\nb.jsonl", "name cannot be used"),
        ("x" * 300 + ".jsonl", "name is too long"),
        ("a/" * 40 + "b.jsonl", "name cannot be used"),
    ],
)
def test_names_that_lead_elsewhere(tmp_path: Path, into: Path, name: str, words: str) -> None:
    file = zipped(tmp_path / "a.zip", {"ok.jsonl": ROWS, name: ROWS})
    before = everything_below(tmp_path)
    with pytest.raises(UserError, match=words):
        unpack(file, into)
    assert everything_below(tmp_path) == before, "not even the harmless file"


@given(some.text(max_size=60))
def test_a_safe_name_stays_below(name: str) -> None:
    try:
        path = safe_name(name, "a.zip")
    except UserError:
        return
    below = Path("/private/folder")
    assert Path(os.path.normpath(below / path)).is_relative_to(below)
    assert Path(os.path.normpath(below / path)) != below


def test_a_link(tmp_path: Path, into: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        info = zipfile.ZipInfo("images.jsonl")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="which is a link or no plain file"):
        unpack(tmp_path / "a.zip", into)
    assert list(into.iterdir()) == []


def test_an_encrypted_zip(tmp_path: Path, into: Path) -> None:
    data = bytearray(zipped(tmp_path / "a.zip", {"rows.jsonl": ROWS}, zipfile.ZIP_STORED).read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + place] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match="is encrypted"):
        unpack(tmp_path / "a.zip", into)


def test_a_bomb_by_its_header(tmp_path: Path, into: Path) -> None:
    file = zipped(tmp_path / "a.zip", {"rows.jsonl": b"\n" * 30_000_000})
    with pytest.raises(UserError, match="unpacks to more than 200 times its size"):
        unpack(file, into)
    assert list(into.iterdir()) == []


def test_a_bomb_that_lies_about_its_size(tmp_path: Path, into: Path) -> None:
    """The header says 100 bytes: no more than these are ever written."""
    data = bytearray(zipped(tmp_path / "a.zip", {"rows.jsonl": b"\n" * 30_000_000}).read_bytes())
    struct.pack_into("<L", data, data.index(b"PK\1\2") + 24, 100)
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        unpack(tmp_path / "a.zip", into)
    assert sum(file.stat().st_size for file in into.rglob("*") if file.is_file()) <= 1 << 20


def test_what_really_comes_is_counted(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the check of the headers is fooled."""
    monkeypatch.setattr(archives, "_check_sizes", lambda *_: None)
    file = zipped(tmp_path / "a.zip", {"rows.jsonl": os.urandom(3_000_000)})
    with pytest.raises(UserError, match="beyond the limit"):
        unpack(file, into, Allowance(bytes=2_000_000))
    file = zipped(tmp_path / "b.zip", {"b.jsonl": b"\n" * 30_000_000})
    with pytest.raises(UserError, match="more than 200 times"):
        unpack(file, into)
    assert (into / "b.jsonl").stat().st_size <= 12_000_000


def test_limits_hold_over_all_zips_of_an_upload(tmp_path: Path, into: Path) -> None:
    left = Allowance(entries=3, bytes=5_000)
    unpack(zipped(tmp_path / "a.zip", {"a.jsonl": os.urandom(3_000), "b.jsonl": b"{}"}), into, left)
    with pytest.raises(UserError, match="the limit of an upload is 20 GB"):
        unpack(zipped(tmp_path / "b.zip", {"c.jsonl": os.urandom(3_000)}), into, left)
    with pytest.raises(UserError, match="more than 300,000 files"):
        unpack(zipped(tmp_path / "c.zip", {"d.jsonl": b"", "e.jsonl": b""}), into, left)


def test_a_table_of_contents_that_would_fill_the_memory(tmp_path: Path, into: Path) -> None:
    data = bytearray(zipped(tmp_path / "a.zip", {"rows.jsonl": ROWS}).read_bytes())
    struct.pack_into("<L", data, data.rindex(b"PK\5\6") + 12, 2_000_000_000)
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match="more than 300,000 files"):
        unpack(tmp_path / "a.zip", into)


def test_no_room_on_the_disk(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SPARE_BYTES", 1 << 60)
    with pytest.raises(UserError, match=r"are free where the data folder lies\. Free some space"):
        unpack(zipped(tmp_path / "a.zip", {"rows.jsonl": ROWS}), into)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damaged(data: bytes) -> bytes:
    place = data.index(b"rows.jsonl") + len(b"rows.jsonl") + 3
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def no_method(data: bytes) -> bytes:
    made = bytearray(data)
    struct.pack_into("<H", made, made.index(b"PK\3\4") + 8, 77)
    struct.pack_into("<H", made, made.index(b"PK\1\2") + 10, 77)
    return bytes(made)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (cut, "is no zip file, or it is cut off or damaged"),
        (damaged, "is no zip file, or it is cut off or damaged"),
        (lambda data: b"", "is no zip file, or it is cut off"),
        (lambda data: b"not a zip at all" * 100, "is no zip file"),
        (no_method, "packed in a way that isn't read"),
    ],
)
def test_broken_zips(tmp_path: Path, into: Path, harm: Callable[[bytes], bytes], words: str) -> None:
    whole = zipped(tmp_path / "a.zip", {"rows.jsonl": ROWS * 50}).read_bytes()
    (tmp_path / "a.zip").write_bytes(harm(whole))
    with pytest.raises(UserError, match=words):
        unpack(tmp_path / "a.zip", into)


@given(some.binary(max_size=30), some.integers(0, 400))
def test_any_damage_is_told(content: bytes, place: int) -> None:
    """Whatever the bytes are, the outcome is files below the folder or a sentence."""
    import tempfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("rows.jsonl", ROWS)
        made.writestr("a/b.png", b"x" * 50)
    data = out.getvalue()
    place = min(place, len(data))
    with tempfile.TemporaryDirectory() as root:
        file, folder = Path(root) / "a.zip", Path(root) / "in"
        folder.mkdir()
        file.write_bytes(data[:place] + content + data[place + len(content) :])
        try:
            unpack(file, folder)
        except UserError:
            pass
        assert everything_below(Path(root)) <= {"a.zip"} | {f"in/{name}" for name in everything_below(folder)}


def test_two_files_of_one_name(tmp_path: Path, into: Path) -> None:
    with pytest.raises(UserError, match=r"Two files are called 'A\.jsonl'"):
        unpack(zipped(tmp_path / "a.zip", {"a.jsonl": ROWS, "A.jsonl": ROWS}), into)
    with pytest.raises(UserError, match=r"a file and a folder that are both called 'a\.png'"):
        unpack(zipped(tmp_path / "b.zip", {"a.png/b.png": ROWS, "a.png": ROWS}), into)
    unpack(zipped(tmp_path / "c.zip", {"a.jsonl": ROWS}), into)
    with pytest.raises(UserError, match=r"Two files are called 'a\.jsonl'"):
        unpack(zipped(tmp_path / "d.zip", {"a.jsonl": ROWS}), into)


def test_an_empty_zip_and_one_without_rows(tmp_path: Path, into: Path) -> None:
    assert unpack(zipped(tmp_path / "a.zip", {}), into).files == []
    assert unpack(zipped(tmp_path / "b.zip", {"a.txt": b"words"}), into).passed == {".txt": 1}


def test_unpacking_takes_no_memory(tmp_path: Path, into: Path) -> None:
    """60 MB come out under a limit of 40 MB above what Python takes."""
    file = zipped(tmp_path / "a.zip", {"a.jsonl": os.urandom(60_000_000)}, zipfile.ZIP_STORED)
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom storage.imports.archives import unpack\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "unpack(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000\n"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code, str(file), str(into)], cwd=root, check=True)
