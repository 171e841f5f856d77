"""Pictures on their way to a judge: taken as they are, turned, made smaller, and said so."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
import pytest

from jobs.judges import pictures
from jobs.judges.calls import Picture
from jobs.judges.pictures import LARGEST, LONGEST, picture_tokens, prepare


def saved(folder: Path, image: PIL.Image.Image, kind: str, **options: Any) -> Path:
    path = folder / f"picture.{kind.lower()}"
    image.save(path, kind, **options)
    return path


def opened(picture: Picture) -> PIL.Image.Image:
    image = PIL.Image.open(io.BytesIO(picture.data))
    assert PIL.Image.MIME[image.format or ""] == picture.media_type
    image.load()
    return image


def noise(size: tuple[int, int], mode: str = "RGB") -> PIL.Image.Image:
    count = size[0] * size[1] * len(mode)
    return PIL.Image.frombytes(mode, size, random.Random(1).randbytes(count))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_what_providers_take_goes_as_it_is(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path, PIL.Image.new("RGB", (40, 30), "red"), kind)
    assert prepare(path) == (Picture(path.read_bytes(), f"image/{kind.lower()}"), "")


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_other_formats_become_png(tmp_path: Path, kind: str, mode: str) -> None:
    source = PIL.Image.linear_gradient("L").convert(mode)
    picture, note = prepare(saved(tmp_path, source, kind))
    assert (picture.media_type, note) == ("image/png", "")
    assert opened(picture).convert("RGB").tobytes() == source.convert("RGB").tobytes()


def test_transparency_survives(tmp_path: Path) -> None:
    source = PIL.Image.new("P", (20, 20), 0)
    source.putpalette([255, 0, 0, 0, 255, 0])
    source.paste(1, (0, 0, 10, 20))
    picture, _ = prepare(saved(tmp_path, source, "GIF", transparency=1))
    image = opened(picture).convert("RGBA")
    assert image.getpixel((0, 0)) == (0, 255, 0, 0)
    assert image.getpixel((15, 0)) == (255, 0, 0, 255)


@pytest.mark.parametrize(
    ("size", "sent"), [((8000, 6000), (3072, 2304)), ((3073, 1), (3072, 1)), ((600, 6144), (300, 3072))]
)
@pytest.mark.slow
def test_a_large_picture_is_made_smaller_and_said_so(
    tmp_path: Path, size: tuple[int, int], sent: tuple[int, int]
) -> None:
    picture, note = prepare(saved(tmp_path, PIL.Image.new("RGB", size, "blue"), "PNG"))
    assert note == f"image {size[0]} × {size[1]} was sent as {sent[0]} × {sent[1]}"
    assert picture.media_type == "image/jpeg"
    assert opened(picture).size == sent


def test_a_large_picture_with_transparency_stays_png(tmp_path: Path) -> None:
    source = PIL.Image.new("RGBA", (LONGEST + 10, 20), (0, 0, 255, 0))
    source.paste((255, 0, 0, 255), (0, 0, 1000, 20))
    picture, _ = prepare(saved(tmp_path, source, "PNG"))
    image = opened(picture)
    assert (picture.media_type, image.mode) == ("image/png", "RGBA")
    assert image.getchannel("A").getpixel((3000, 5)) == 0
    assert image.getpixel((500, 5)) == (255, 0, 0, 255)


def test_the_limit_itself_is_taken(tmp_path: Path) -> None:
    path = saved(tmp_path, PIL.Image.new("L", (LONGEST, 2)), "PNG")
    assert prepare(path) == (Picture(path.read_bytes(), "image/png"), "")


def test_a_heavy_file_is_made_lighter(tmp_path: Path) -> None:
    path = saved(tmp_path, noise((1500, 1500)), "PNG")
    heavy = path.stat().st_size
    assert heavy > LARGEST
    picture, note = prepare(path)
    assert len(picture.data) <= LARGEST
    assert opened(picture).size == (1500, 1500)
    assert note == f"image 1500 × 1500 ({heavy / 1e6:.1f} MB) was sent with {len(picture.data) / 1e6:.1f} MB"


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_what_stays_too_heavy_is_scaled_until_it_fits(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "LARGEST", 40_000)
    picture, note = prepare(saved(tmp_path, noise((400, 300), mode), "PNG"))
    width, height = opened(picture).size
    assert len(picture.data) <= 40_000
    assert width < 400
    assert width / height == pytest.approx(4 / 3, rel=0.02)
    assert note == f"image 400 × 300 was sent as {width} × {height}"


@pytest.mark.parametrize("turn", range(2, 9))
def test_pictures_are_sent_upright(tmp_path: Path, turn: int) -> None:
    source = PIL.Image.new("RGB", (60, 40), "white")
    source.paste("red", (0, 0, 20, 10))
    exif = PIL.Image.Exif()
    exif[0x0112] = turn
    path = saved(tmp_path, source, "PNG", exif=exif)
    picture, note = prepare(path)
    assert note == ""
    with PIL.Image.open(path) as file:
        upright = PIL.ImageOps.exif_transpose(file)
    sent = opened(picture)
    assert sent.getexif().get(0x0112, 1) == 1
    assert sent.convert("RGB").tobytes() == upright.convert("RGB").tobytes()


def test_a_large_picture_on_its_side_is_turned_and_its_note_too(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    picture, note = prepare(saved(tmp_path, PIL.Image.new("RGB", (6144, 600)), "JPEG", exif=exif))
    assert note == "image 600 × 6144 was sent as 300 × 3072"
    assert opened(picture).getexif().get(0x0112, 1) == 1


def test_grey_of_16_bits_keeps_its_range(tmp_path: Path) -> None:
    source = PIL.Image.frombytes("I;16", (LONGEST + 1, 2), b"\x00\x80" * (LONGEST + 1) * 2)
    picture, _ = prepare(saved(tmp_path, source, "PNG"))
    level = opened(picture).convert("L").getpixel((5, 0))
    assert level == pytest.approx(128, abs=2)


def test_cmyk_loses_its_profile_and_rgb_keeps_it(tmp_path: Path) -> None:
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    size = (LONGEST + 10, 10)
    kept, _ = prepare(saved(tmp_path, PIL.Image.new("RGB", size), "JPEG", icc_profile=profile))
    dropped, _ = prepare(saved(tmp_path, PIL.Image.new("CMYK", size), "JPEG", icc_profile=b"\0" * 16 + b"CMYK"))
    assert opened(kept).info["icc_profile"] == profile
    assert "icc_profile" not in opened(dropped).info
    assert opened(dropped).mode == "RGB"


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    path = saved(tmp_path, noise((LONGEST + 50, 40)), "PNG")
    assert prepare(path) == prepare(path)


@pytest.mark.parametrize("data", [b"", b"nothing", b"\x89PNG\r\n\x1a\n", b"BM" + b"\0" * 60])
def test_what_is_no_picture_is_an_oserror(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(OSError, match="picture"):
        prepare(path)


def test_a_picture_cut_off_is_an_oserror(tmp_path: Path) -> None:
    path = saved(tmp_path, noise((LONGEST + 1, 5)), "BMP")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(OSError, match="cut off"):
        prepare(path)


def test_a_missing_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        prepare(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((1, 1), 258),
        ((384, 384), 258),
        ((385, 10), 258),
        ((768, 768), 258),
        ((769, 768), 516),
        ((960, 540), 516),
        ((3072, 2304), 12 * 258),
    ],
)
def test_tokens_of_a_picture(size: tuple[int, int], tokens: int) -> None:
    assert picture_tokens(*size) == tokens
