"""Images: stored once by content; what cannot be used is refused with its reason, and nothing is kept of it."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import PIL.Image
import pytest

from factories import World, png
from storage import easy_vqa
from storage.errors import UserError
from storage.images import ensure_image, ensure_image_file, image_path, thumbnail_path
from storage.rows import count


def animated() -> bytes:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def huge_header() -> bytes:
    """A PNG that says it is 10,000 × 10,000 pixels and holds none of them: the header alone must refuse it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", r"cat\.png is empty \(0 bytes\)"),
        (b"no image at all", r"cat\.png is not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "is not an image"),
        (png(size=(200, 200))[:-80], "damaged or cut off"),
        (animated(), "is animated"),
        (huge_header(), "10000 × 10000 = 100 megapixels; the limit is 50"),
    ],
    ids=["empty", "text", "svg", "truncated", "animated", "100 megapixels"],
)
def test_bad_images_are_refused_and_leave_nothing(world: World, data: bytes, text: str) -> None:
    with pytest.raises(UserError, match=text):
        ensure_image(world.db, world.folder, data, "cat.png")
    assert count(world.db, "SELECT count(*) FROM images") == 0
    assert [path for path in world.folder.images.rglob("*") if path.is_file()] == []


def test_a_missing_file_is_named(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png is missing"):
        ensure_image_file(world.db, world.folder, tmp_path / "gone.png")
    with pytest.raises(UserError, match="cannot be read"):
        ensure_image_file(world.db, world.folder, tmp_path)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
def test_the_same_bytes_are_stored_once_as_they_are(world: World, form: str) -> None:
    out = io.BytesIO()
    PIL.Image.new("RGB", (300, 100), "teal").save(out, form)
    first = ensure_image(world.db, world.folder, out.getvalue())
    assert ensure_image(world.db, world.folder, out.getvalue()) == first
    assert image_path(world.folder, first).read_bytes() == out.getvalue()
    with PIL.Image.open(thumbnail_path(world.folder, first.sha256)) as small:
        assert small.size == (256, 85)
    assert count(world.db, "SELECT count(*) FROM images") == 1


def test_a_lost_file_is_written_again(world: World) -> None:
    image = ensure_image(world.db, world.folder, png())
    image_path(world.folder, image).unlink()
    ensure_image(world.db, world.folder, png())
    assert image_path(world.folder, image).read_bytes() == png()


def test_without_the_demos_wheel_the_remedy_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "easy_vqa", None)
    with pytest.raises(UserError, match="make setup"):
        easy_vqa.import_easy_vqa(world.db, world.folder, 10)
    assert count(world.db, "SELECT count(*) FROM samples") == 0


def test_the_choice_is_half_open_questions_and_seeded() -> None:
    questions = easy_vqa.load_questions("train")
    chosen = easy_vqa.choose(questions, 100, seed=1)
    assert sum(question.answer not in easy_vqa.YES_NO for question in chosen) == 50
    assert chosen == easy_vqa.choose(questions, 100, seed=1)
    assert chosen != easy_vqa.choose(questions, 100, seed=2)
    with pytest.raises(UserError, match="split = 'all'"):
        easy_vqa.load_questions("all")  # type: ignore[arg-type]
