"""Guidelines beside the sample: what Markdown may do, versions, who may write them."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from fastapi.testclient import TestClient

from factories import World
from jobs.settings import local_user
from storage.errors import Conflict, UserError
from storage.guidelines import LONGEST, get_guidelines, list_guidelines, write_guidelines
from test_samples_page import EVIL, Shape
from workbench import guidelines
from workbench.context import Context
from workbench.door import Door
from workbench.ui import build_api


@pytest.fixture
def web(context: Context) -> TestClient:
    return TestClient(build_api(context, Door(context.settings)), base_url="http://127.0.0.1")


@pytest.mark.parametrize(
    "text",
    [
        EVIL,
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt:alert(1))",
        "[x](java&#x0A;script:alert(1))",
        "[x](data:text/html,<script>alert(1)</script>)",
        "[x](vbscript:x)",
        "[x](//evil.example/)",
        "[x](/\\evil.example/)",
        "[x](file:///etc/passwd)",
        "![x](https://evil.example/pixel.png)",
        "<javascript:alert(1)>",
        '[x]: javascript:alert(1) "y"\n\n[x]',
        "[x](http://[)",
    ],
)
def test_nothing_in_guidelines_runs_or_is_fetched(text: str) -> None:
    shape = Shape(guidelines.render(text))
    assert not {tag for tag, _ in shape.tags} & {"script", "img", "iframe", "style", "object"}
    assert [name for _, found in shape.tags for name in found if name.startswith("on")] == []
    for link in [urlsplit(found.get("href") or "") for tag, found in shape.tags if tag == "a"]:
        assert link.scheme in ("", "http", "https"), link
        assert not (link.netloc and not link.scheme), link


def test_guidelines_may_link_and_lay_out() -> None:
    text = "# A\n\n| a | b |\n|--|--|\n| 1 | 2 |\n\n[p](/pairs) [w](https://x.example) 🙂 שלום"
    shape = Shape(guidelines.render(text))
    links = {found["href"]: found for tag, found in shape.tags if tag == "a"}
    assert set(links) == {"/pairs", "https://x.example"}
    assert links["https://x.example"]["rel"] == "noopener noreferrer"
    assert "target" not in links["/pairs"]
    assert {"h1", "table"} <= {tag for tag, _ in shape.tags}
    assert "🙂 שלום" in shape.text


def test_versions_of_guidelines_stay(world: World, context: Context) -> None:
    assert "no guidelines yet" in guidelines.show_guidelines(context)
    guidelines.save_guidelines(context, "ada", "first", 0)
    assert write_guidelines(world.db, "ada", " first\r\n", 1).number == 1, "the same text is no version"
    shown = guidelines.save_guidelines(context, EVIL, f"second {EVIL}", 1)
    assert "script" not in {tag for tag, _ in Shape(shown).tags}
    assert [(one.number, one.user) for one in list_guidelines(world.db)] == [(2, EVIL), (1, "ada")]
    assert get_guidelines(world.db, 1).text == "first"
    with pytest.raises(Conflict, match="version 2"):
        write_guidelines(world.db, "bob", "third", 1)
    with pytest.raises(UserError, match="50,001"):
        write_guidelines(world.db, "bob", "x" * (LONGEST + 1), 2)
    guidelines.save_guidelines(context, "ada", "", 2)
    assert get_guidelines(world.db).text == ""


def test_an_annotator_reads_guidelines_and_does_not_write_them(context: Context) -> None:
    assert "data-guide" not in guidelines.show_guidelines(context, "annotator")
    assert "data-guide" in guidelines.show_guidelines(context, "researcher")
    with pytest.raises(UserError, match="researchers and admins"):
        guidelines.save_guidelines(context, "ada", "x", 0, "annotator")


def test_guidelines_through_the_api(world: World, web: TestClient) -> None:
    assert "<em>x</em>" in web.post("/api/guidelines", json={"text": "*x*", "was": 0}).json()["html"]
    assert web.post("/api/guidelines", json={"text": "y", "was": 0}).status_code == 409
    assert get_guidelines(world.db).user == local_user()
