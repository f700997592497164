"""The files around the package agree with it and with each other: the site, the workflows, the forms, the citation."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import wan_vae
from scripts import build_docs

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
SCHEMAS = {
    "vendor.github-workflows": WORKFLOWS,
    "vendor.github-issue-forms": [form for form in FORMS if form.name != "config.yml"],
    "vendor.github-issue-config": [form for form in FORMS if form.name == "config.yml"],
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
}

# Archives of the source hold the tests, but not these files.
pytestmark = pytest.mark.skipif(not WORKFLOWS, reason=".github/ is missing; this is no checkout of the repository")


def parsed(path: Path | str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def leaves(nav: Any) -> list[str]:
    """Return the pages and addresses that a navigation names, in order."""
    if isinstance(nav, str):
        return [nav]
    return [leaf for item in (nav.values() if isinstance(nav, dict) else nav) for leaf in leaves(item)]


def python_versions(workflow: Path) -> set[str]:
    return set(re.findall(r'"(3\.\d+)"', workflow.read_text(encoding="utf-8")))


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in parsed(workflow)["jobs"].values() for step in job["steps"]]


def test_citation_version_is_the_packages() -> None:
    assert parsed("CITATION.cff")["version"] == wan_vae.__version__


def test_nav_names_every_page_once() -> None:
    reference = [f"reference/{module}.md" for module in build_docs.MODULES]
    named = [leaf for leaf in leaves(parsed("mkdocs.yml")["nav"]) if "://" not in leaf]
    assert sorted(named) == sorted([*build_docs.pages().values(), *reference])


@pytest.mark.parametrize("source", build_docs.pages())
def test_links_of_page_lead_somewhere(source: str) -> None:
    assert build_docs.page_on_site(source, build_docs.pages())


def test_link_on_site_leads_to_pages_files_and_the_repository() -> None:
    names = {"README.md": "index.md", "docs/a.md": "a.md"}
    assert build_docs.link_on_site("docs/speed.md", "../README.md#files", names) == "index.md#files"
    assert build_docs.link_on_site("README.md", "docs/images/bunny.png", names) == "images/bunny.png"
    assert build_docs.link_on_site("docs/speed.md", "#speed", names) == "#speed"
    assert build_docs.link_on_site("README.md", "LICENSE", names) == f"{build_docs.repository()}/blob/main/LICENSE"
    assert build_docs.link_on_site("docs/speed.md", "../tests", names) == f"{build_docs.repository()}/tree/main/tests"
    with pytest.raises(FileNotFoundError, match=r"docs/speed\.md links to nowhere\.md"):
        build_docs.link_on_site("docs/speed.md", "nowhere.md", names)


def test_page_on_site_passes_over_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.md").write_text("`x[0](b.md)` [b](b.md)\n```\ny[0](b.md)\n```\n![b](b.md)\n", encoding="utf-8")
    (tmp_path / "b.md").touch()
    monkeypatch.setattr(build_docs, "ROOT", tmp_path)
    page = build_docs.page_on_site("a.md", {"b.md": "c.md"})
    assert page == "`x[0](b.md)` [b](c.md)\n```\ny[0](b.md)\n```\n![b](c.md)\n"


@pytest.mark.parametrize("module", ["wan_vae", "wan_vae.io", "wan_vae.dataset", "wan_vae.checkpoints"])
def test_public_names_are_those_that_the_module_exports(module: str) -> None:
    exported = set(importlib.import_module(module).__all__) - {"__version__"}
    assert set(build_docs.public_names(module)) == exported


@pytest.mark.parametrize("module", build_docs.MODULES)
def test_reference_page_names_members_and_examples_are_marked(module: str) -> None:
    pattern = rf"\n::: {re.escape(module)}\n    options:\n      members:\n        - \w+"
    assert re.search(pattern, build_docs.reference_page(module))
    # Outside a section "Examples", the marks would be read as quotations.
    docstring = ast.get_docstring(ast.parse(build_docs.file_of(module).read_text(encoding="utf-8")))
    assert docstring is not None
    assert re.search("^>>>", docstring, re.MULTILINE) is None


def test_repository_is_the_same_everywhere() -> None:
    repository = build_docs.repository()
    site = re.sub(r"https://github\.com/(.+)/(.+)", r"https://\1.github.io/\2/", repository)
    settings, citation, links = (
        parsed("mkdocs.yml"),
        parsed("CITATION.cff"),
        parsed(".github/ISSUE_TEMPLATE/config.yml"),
    )
    assert [leaf for leaf in leaves(settings["nav"]) if "://" in leaf] == [repository]
    assert citation["repository-code"] == repository
    assert {settings["site_url"], citation["url"]} == {site}
    assert [link["url"] for link in links["contact_links"]] == [f"{repository}/security/advisories/new", site]
    urls = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.urls]")[2].partition("\n\n")[0]
    assert all(url.startswith((repository, site)) for url in re.findall('"(.+)"', urls))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_has_least_permissions_and_pinned_actions(workflow: Path) -> None:
    content = parsed(workflow)
    assert content["permissions"] == {"contents": "read"}
    assert content["concurrency"]["group"]
    for name, job in content["jobs"].items():
        assert job["timeout-minutes"] <= 60, name
        # Only a job that runs no code of pull requests may write.
        assert "permissions" not in job or "refs/" in job["if"], name
    for step in steps(workflow):
        assert re.search(r"@(v\d+|release/v\d+)$", step.get("uses", "@v1")), step
        assert "checkout" not in step.get("uses", "") or step["with"]["persist-credentials"] is False


@pytest.mark.skipif(find_spec("check_jsonschema") is None, reason="check-jsonschema is missing")
@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_fit_their_schema(schema: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, SCHEMAS[schema])]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_workflow_tests_lowest_python_and_no_older() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lowest = re.search(r'requires-python = ">=3\.(\d+)"', pyproject)
    assert lowest is not None
    tested = sorted(int(version[2:]) for version in python_versions(ROOT / ".github/workflows/tests.yml"))
    assert tested[0] == int(lowest[1])
    assert tested == list(range(tested[0], tested[-1] + 1))
    image = re.search(r"^FROM python:3\.(\d+)-slim$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert image is not None
    assert int(image[1]) in tested


def test_workflows_run_what_is_there() -> None:
    words = [word for path in WORKFLOWS for step in steps(path) for word in shlex.split(step.get("run", ""))]
    paths = [word for word in words if word.startswith(("scripts/", "tests/"))]
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("form", SCHEMAS["vendor.github-issue-forms"], ids=lambda path: path.name)
def test_issue_form_has_fields_with_names_of_their_own(form: Path) -> None:
    content = parsed(form)
    assert content["name"]
    assert content["description"]
    names = [field["id"] for field in content["body"]]
    assert len(set(names)) == len(names)
    assert any(field.get("validations", {}).get("required") for field in content["body"])


def test_bug_form_asks_for_command_output_and_version() -> None:
    fields = {field["id"]: field for field in parsed(".github/ISSUE_TEMPLATE/bug.yml")["body"]}
    assert {"command", "output", "versions"} <= {name for name, field in fields.items() if field.get("validations")}
    assert "wan-vae --version" in fields["versions"]["attributes"]["value"]
    assert "wan-vae info" in fields["files"]["attributes"]["description"]


def test_image_runs_the_tests_without_root() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER wan"
    assert lines[-1] == 'CMD ["pytest"]'
