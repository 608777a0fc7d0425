"""Every public name has a docstring that proves something, a page, and a table row."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pureopt as po
from pureopt import testing
from pureopt.interop import torch as interop
from tests import tables

ROOT = Path(__file__).parents[1]
REFERENCE = "\n".join(
    page.read_text() for page in sorted((ROOT / "docs" / "reference").glob("*.md"))
)
MODULES = {
    "pureopt": po,
    "pureopt.constraints": po.constraints,
    "pureopt.derivatives": po.derivatives,
    "pureopt.entropy": po.entropy,
    "pureopt.interop.torch": interop,
    "pureopt.random": po.random,
    "pureopt.testing": testing,
}


def members(module_name: str) -> list[tuple[str, Any]]:
    module = MODULES[module_name]
    return [
        (f"{module_name}.{name}", getattr(module, name))
        for name in module.__all__
        if not isinstance(getattr(module, name), ModuleType)
    ]


# A name that stands in two modules counts once, where it is shortest to write.
PUBLIC = [
    (name, thing)
    for thing, name in {
        thing: name
        for module_name in reversed(MODULES)
        for name, thing in members(module_name)
    }.items()
]
NAMES = [name for name, _ in PUBLIC]


def concrete(base: type) -> list[str]:
    """The public final classes of one abstraction."""
    return [
        name.rsplit(".", 1)[-1]
        for name, thing in PUBLIC
        if inspect.isclass(thing)
        and issubclass(thing, base)
        and not inspect.isabstract(thing)
    ]


@pytest.mark.parametrize("module_name", MODULES)
def test_all_names_what_is_there_once(module_name):
    module = MODULES[module_name]
    assert len(module.__all__) == len(set(module.__all__))
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("module_name", MODULES)
def test_nothing_public_is_left_out_of_all(module_name):
    module = MODULES[module_name]
    public = {
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (getattr(thing, "__module__", None) or "").startswith("pureopt")
    }
    assert public <= set(module.__all__)


@pytest.mark.parametrize(("name", "thing"), PUBLIC, ids=NAMES)
def test_the_docstring_has_a_summary_and_an_example(name, thing):
    # `vars`, not `getattr`: a docstring inherited from a base is not its own.
    doc = inspect.cleandoc(vars(thing).get("__doc__") or "" if inspect.isclass(thing)
                           else thing.__doc__ or "")  # fmt: skip
    summary = doc.split("\n", 1)[0]
    assert summary
    assert summary[-1] in ".:!"
    # A state is data: what its fields hold is the example.
    assert ">>> " in doc or (hasattr(thing, "_fields") and "Attributes:" in doc)


@pytest.mark.parametrize("name", NAMES)
def test_the_name_stands_in_the_reference(name):
    assert re.search(rf"auto\w+:: {re.escape(name)}$", REFERENCE, re.MULTILINE)


@pytest.mark.parametrize("name", concrete(po.Transform))
def test_the_transform_has_a_row(name):
    assert name in {row.public.rsplit(".", 1)[-1] for row in tables.TRANSFORMS}


@pytest.mark.parametrize("name", concrete(po.constraints.Constraint))
def test_the_constraint_has_a_row(name):
    assert name in {row.public.rsplit(".", 1)[-1] for row in tables.CONSTRAINTS}


@pytest.mark.parametrize("name", po.entropy.__all__)
def test_the_estimator_has_a_row(name):
    assert name in {row.public.rsplit(".", 1)[-1] for row in tables.ESTIMATORS}


@pytest.mark.parametrize("name", po.derivatives.__all__)
def test_the_operator_has_a_row(name):
    thing = getattr(po.derivatives, name)
    results_and_errors = inspect.isclass(thing)
    assert results_and_errors or name in {row.public for row in tables.OPERATORS}


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "reference").glob("*.md")),
                         ids=lambda page: page.name)  # fmt: skip
def test_the_reference_names_only_what_is_public(page):
    targets = re.findall(r"auto\w+:: (pureopt\S+)$", page.read_text(), re.MULTILINE)
    assert targets or page.name == "index.md"
    assert set(targets) <= {*NAMES, *MODULES}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "typing").glob("*.py")), ids=lambda path: path.name
)
def test_the_user_code_that_the_type_checker_reads_also_runs(path):
    runpy.run_path(str(path))
