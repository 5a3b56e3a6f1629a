"""Every guide runs as printed, and the README leads to each."""

import pathlib
import re
import subprocess
import sys

import pytest

import kvision

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "guides").glob("*.md"))
LANGUAGES = {"python", "text", "sh"}  # the first is run; what needs the network or another machine is one of the others
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
pytestmark = pytest.mark.tensorflow_only


def script_of(page):
    """The code of a page at the lines where it stands there, and the language of each of its blocks."""
    lines, languages, language = [], [], None
    for line in page.read_text().splitlines():
        is_fence = line.startswith("```")
        lines.append(line if language == "python" and not is_fence else "")
        if is_fence:
            language = None if language is not None else line[3:].strip()
            languages += [] if language is None else [language]
    assert language is None, f"{page.name}: the last block has no end"
    return "\n".join(lines) + "\n", languages


@pytest.mark.slow
@every_page
def test_a_page_runs_as_printed(tmp_path, page):
    code, _ = script_of(page)
    script, folder = tmp_path / f"{page.stem}.py", tmp_path / "empty"
    script.write_text(code)
    folder.mkdir()
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@every_page
def test_a_page_has_code_and_says_what_does_not_run(page):
    code, languages = script_of(page)
    assert code.strip()
    assert set(languages) <= LANGUAGES


def test_the_readme_links_every_page():
    (section,) = re.findall(r"^## Guides\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)
    linked = re.findall(r"\]\((docs/guides/[^)]+)\)", section)
    assert len(linked) == len(set(linked))
    assert {page.relative_to(ROOT).as_posix() for page in PAGES} <= set(linked)


def test_the_citation_names_the_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.+)$", citation, re.M).group(1) == kvision.__version__
