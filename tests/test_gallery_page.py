"""The page of sections of images: it loads nothing, and text stays text."""

import numpy as np
import pytest

from kvision.page import address, encoded, page_of
from tests.trackers.report_page import open_in_browser, parse


@pytest.fixture
def page(tmp_path):
    kind, content, (width, height) = encoded(np.random.default_rng(0).random((40, 60, 3)), side=30)
    assert (width, height) == (30, 20)
    image = {"name": "a <b>unit</b>", "source": address(kind, content), "width": width, "height": height}
    sections = [
        {"title": "First", "shows": "It.", "shows_not": "More.", "images": [image] * 2, "heads": [], "rows": []},
        {"title": "</script>", "shows": "x", "shows_not": "", "images": [], "heads": ["a"], "rows": [["row"], [0.5]]},
    ]
    data = {"run": "here", "title": "Inside", "lead": "A sentence.", "sections": sections}
    path = tmp_path / "page.html"
    path.write_text(page_of("gallery.html", "Inside", ("elements", "gallery"), data), encoding="utf-8")
    return path


def test_it_loads_nothing(page):
    parsed = parse(page)
    assert not [value for name, value in parsed.attributes if name == "src" and not value.startswith("data:")]


def test_the_files_are_as_small_as_is_asked_for():
    noise = np.random.default_rng(0).random((300, 300, 3))
    _, content, (width, _) = encoded(noise, side=200, most=5_000)
    assert len(content) <= 5_000
    assert width < 200


@pytest.mark.browser
def test_it_is_drawn(page, tmp_path):
    drawn, said = open_in_browser(page, tmp_path / "profile")
    assert 'data-drawn="yes"' in drawn
    assert not said
    assert drawn.count("<img ") == 2
    assert "a &lt;b&gt;unit&lt;/b&gt;" in drawn
    assert ">row</th>" in drawn
