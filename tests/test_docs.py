"""The code on the pages of the documentation and in the README does what it says."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(
        page
        for page in sorted((ROOT / "docs").rglob("*.md"))
        if "gallery" not in page.parts and "_build" not in page.parts
    ),
]
FENCE = re.compile(r"^```(\w*).*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+?)(?:#[^)]*)?\)")


def sessions(page: Path) -> list[tuple[int, str]]:
    """First line and text of each fenced block of Python."""
    text = page.read_text()
    return [
        (text.count("\n", 0, match.start(2)), match[2])
        for match in FENCE.finditer(text)
        if match[1] == "python"
    ]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if sessions(p)], ids=page_id)
def test_the_sessions_of_a_page_print_what_they_show(page):
    # One namespace per page, so that a page reads from top to bottom.
    namespace: dict[str, object] = {}
    parser = doctest.DocTestParser()
    runner = doctest.DocTestRunner(
        optionflags=doctest.NORMALIZE_WHITESPACE
        | doctest.IGNORE_EXCEPTION_DETAIL
        | doctest.FAIL_FAST
    )
    out: list[str] = []
    for line, block in sessions(page):
        assert block.startswith(">>> "), f"{page_id(page)}:{line}: not a session"
        test = parser.get_doctest(block, {}, page.name, str(page), line)
        test.globs = namespace
        runner.run(test, out=out.append, clear_globs=False)
        assert not runner.failures, "".join(out)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_the_links_of_a_page_lead_somewhere(page):
    # The gallery is made when the site is built, and sphinx checks those links.
    prose = FENCE.sub("", page.read_text())
    targets = [t for t in LINK.findall(prose) if "gallery" not in t]
    assert [t for t in targets if not (page.parent / t).exists()] == []


CITED = re.compile(
    r"([A-Z][\w'-]+)(?:(?:, | and )[A-Z][\w'-]+| et al\.)*,? \((\d{4})\)"
)


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=page_id)
def test_what_a_docstring_cites_stands_in_the_bibliography(path):
    entries = (ROOT / "docs" / "bibliography.md").read_text().split("\n- ")
    cited = set(CITED.findall(" ".join(path.read_text().split())))
    missing = {
        (author, year)
        for author, year in cited
        if not any(author in entry and f"({year})" in entry for entry in entries)
    }
    assert missing == set()
