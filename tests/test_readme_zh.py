"""README.zh.md says what README.md says: where one of the two changes alone, these tests name the place."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Links from each page to the other.
OWN_LINKS = {"README.md", "README.zh.md"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def sections(text: str) -> list[tuple[int, str]]:
    """Split a page at its headings, into the level of each and what is below it."""
    parts = re.split(r"^(#+) .*$", without_blocks(text), flags=re.MULTILINE)[1:]
    return [(len(level), body) for level, body in zip(parts[::2], parts[1::2], strict=True)]


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def code_lines(text: str) -> list[str]:
    """Return the lines of all code blocks without comments; of the tree of files, the names in each line."""
    lines = []
    for block in re.findall(r"^(```.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        is_tree = block.startswith("```\nwan_vae/\n")
        for line in block.splitlines():
            names = re.findall(r"[A-Za-z_]+(?:\.py|/)", line)
            lines.append(" ".join(names) if is_tree else re.sub(r"\s*(?<!\S)#.*$", "", line))
    return lines


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", text)


def links(text: str) -> list[str]:
    return [target for target in re.findall(r"\]\(([^)]+)\)", text) if target not in OWN_LINKS]


def table_rows(text: str) -> list[tuple[int, list[str]]]:
    """Return the number of cells of each row, and its numbers."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [(row.count("|"), numbers(row)) for row in rows]


def differences(english: str, chinese: str) -> Iterator[str]:
    """Yield what one page has and the other has not, or has elsewhere."""
    ours, theirs = sections(english), sections(chinese)
    if [level for level, _ in ours] != [level for level, _ in theirs]:
        yield "the headings differ in number or level"
        return
    for one, other in zip(code_lines(english), code_lines(chinese), strict=False):
        if one != other:
            yield f"code: {one!r} is {other!r}"
    if len(code_lines(english)) != len(code_lines(chinese)):
        yield "code: the number of lines differs"
    parts: dict[str, Callable[[str], list]] = {
        "links": links,
        "inline code": lambda text: re.findall(r"`([^`]+)`", text),
        "numbers": numbers,
    }
    for place, ((_, one), (_, other)) in enumerate(zip(ours, theirs, strict=True)):
        if table_rows(one) != table_rows(other):
            yield f"section {place}: the tables differ"
        for name, found in parts.items():  # sorted, for a sentence in another language has another order
            if sorted(found(one)) != sorted(found(other)):
                yield f"section {place}, {name}: {sorted(found(one))} are {sorted(found(other))}"


def test_readme_zh_has_what_readme_has() -> None:
    assert list(differences(read("README.md"), read("README.zh.md"))) == []


@pytest.mark.parametrize("target", links(read("README.zh.md")))
def test_readme_zh_links_to_files_that_exist(target: str) -> None:
    assert (ROOT / target.partition("#")[0]).exists()


@pytest.mark.parametrize(
    ("place", "change", "said"),
    [
        ("## Speed", "### Speed", "headings"),
        ("wan-vae info bunny.safetensors ", "wan-vae info bunny.safetensors --json ", "code"),
        ("vae.encode_stream(video.split(10", "vae.encode_stream(video.split(8", "code"),
        ("```python\nvae =", "```python\nimport torch\nvae =", "code"),
        ("  posterior.py", "  posteriors.py", "code"),
        ("| 14.8 |", "| 14.9 |", "tables"),
        ("| AMD EPYC | decode", "| AMD EPYC | both, fp16 | 1 | 2 | 3 | 4 |\n| AMD EPYC | decode", "tables"),
        ("](docs/limits.md)", "](docs/limitations.md)", "links"),
        ("`--lossless`", "`--exact`", "inline code"),
        ("about 5 s", "about 6 s", "numbers"),
    ],
)
def test_differences_of_a_page_that_changed_alone_name_it(place: str, change: str, said: str) -> None:
    english, chinese = read("README.md"), read("README.zh.md")
    changed = english.replace(place, change, 1)

    assert changed != english, f"README.md no longer has {place!r}; let this test change something else"
    assert any(said in difference for difference in differences(changed, chinese))


def test_differences_of_comments_and_of_links_between_the_pages_are_none() -> None:
    english = read("README.md").replace("# wan_vae\n", "# wan_vae\n\n[Chinese](README.zh.md)\n", 1)
    english = english.replace("# what is this file?", "# which file is this?")

    assert list(differences(english, read("README.zh.md"))) == []
