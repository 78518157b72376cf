"""The error tree, its drawing and its pages say the same."""

import re
from pathlib import Path

import pytest

from tersely import errors
from tersely.errors import TerselyError, concrete_errors

PAGES = Path(__file__).resolve().parents[2] / "docs" / "errors"
CONCRETE = list(concrete_errors())
# "    |  |- RedisAuth                   41  redis_auth"
DRAWN = re.compile(r"^ {4}(?P<indent>[| ]*)[|`]- (?P<name>\w+)(?: +(?P<code>\d+) +(?P<kind>\w+))?$", re.MULTILINE)


def drawn_tree() -> dict[str, tuple[str, int | None, str | None]]:
    """Class name -> (name of its parent, exit code, kind) as drawn in the module docstring."""
    tree: dict[str, tuple[str, int | None, str | None]] = {}
    path = ["TerselyError"]
    for match in DRAWN.finditer(errors.__doc__ or ""):
        depth = len(match["indent"]) // 3 + 1
        path = path[:depth]
        tree[match["name"]] = (path[-1], int(match["code"]) if match["code"] else None, match["kind"])
        path.append(match["name"])
    return tree


def all_classes(cls: type[TerselyError] = TerselyError) -> list[type[TerselyError]]:
    return [found for sub in cls.__subclasses__() for found in (sub, *all_classes(sub))]


def test_the_drawn_tree_is_the_class_tree() -> None:
    real = {
        cls.__name__: (cls.__bases__[0].__name__, cls.exit_code, cls.kind)
        if "kind" in cls.__dict__
        else (cls.__bases__[0].__name__, None, None)
        for cls in all_classes()
        if cls.__module__.startswith("tersely.errors.")
    }
    assert drawn_tree() == real


def test_codes_and_kinds_are_unique_and_leave_room_for_success_and_signals() -> None:
    assert len({cls.exit_code for cls in CONCRETE}) == len(CONCRETE)
    assert len({cls.kind for cls in CONCRETE}) == len(CONCRETE)
    assert all(2 < cls.exit_code < 126 for cls in CONCRETE)


@pytest.mark.parametrize("cls", CONCRETE, ids=lambda cls: cls.kind)
def test_kind_is_the_class_name_in_snake_case(cls: type[TerselyError]) -> None:
    assert re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower() == cls.kind


@pytest.mark.parametrize("cls", CONCRETE, ids=lambda cls: cls.kind)
def test_page_states_kind_class_and_exit_code_and_helps(cls: type[TerselyError]) -> None:
    page = (PAGES / f"{cls.kind}.md").read_text()
    assert page.startswith(f"# `{cls.kind}`\n\nExit code {cls.exit_code}. Class `{cls.__name__}`.\n")
    causes, way_out = page.split("\nUsual causes:\n")[1].split("\nWhat to do:\n")
    assert causes.lstrip().startswith("- ")
    assert way_out.lstrip().startswith("- ")


def test_no_page_without_a_class() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} - {"README"} == {cls.kind for cls in CONCRETE}


def test_overview_lists_every_error_once_with_its_code() -> None:
    rows = re.findall(r"^\| (\d+) \| \[(\w+)\]\((\w+)\.md\) \|", (PAGES / "README.md").read_text(), re.MULTILINE)
    assert [(int(code), kind, link) for code, kind, link in rows] == [
        (cls.exit_code, cls.kind, cls.kind) for cls in CONCRETE
    ]


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda path: path.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    broken = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if not (page.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("cls", CONCRETE, ids=lambda cls: cls.kind)
def test_render_names_cause_way_out_page_and_code_without_a_traceback(cls: type[TerselyError]) -> None:
    try:
        try:
            raise OSError("errno 111 deep below")
        except OSError as below:
            raise cls("It broke at port 5.", "Mend port 5.") from below
    except TerselyError as error:
        shown = error.render()
    assert shown.splitlines()[0] == f"error[{cls.kind}]: It broke at port 5."
    assert "what to do: Mend port 5." in shown
    assert f"docs/errors/{cls.kind}.md" in shown
    assert f"exit code {cls.exit_code}" in shown
    assert "Traceback" not in shown
    assert "errno 111" not in shown


def test_str_has_message_and_way_out_for_logs() -> None:
    assert str(errors.PortBusy("Port 5 is taken.", "Set another.")) == "Port 5 is taken. Set another."
    assert str(errors.PortBusy("Port 5 is taken.")) == "Port 5 is taken."
