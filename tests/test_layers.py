"""Rules about the source that no type checker knows, and what importing it costs."""

from __future__ import annotations

import ast
import builtins
import dis
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "pureopt"
MODULES = sorted(SRC.rglob("*.py"))

# Calls that make a tensor from numbers, and so land on the CPU unless told otherwise.
FACTORIES = {
    "arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones",
    "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros",
}  # fmt: skip
# Calls that read or move torch's global generator, and methods that do so in place.
GLOBAL_RNG = {
    "bernoulli", "default_generator", "dropout", "fork_rng", "get_rng_state",
    "manual_seed", "multinomial", "normal", "poisson", "rand", "rand_like", "randint",
    "randint_like", "randn", "randn_like", "randperm", "seed", "set_rng_state",
    "normal_", "uniform_", "bernoulli_", "exponential_", "random_", "cauchy_",
}  # fmt: skip
# Methods that wait for the device and hand a tensor's value to Python.
SYNCS = {"item", "tolist", "numpy"}
# The names under which torch's functions are called.
TORCH = {"torch", "F", "nn", "functional", "linalg", "special"}


def calls(tree: ast.AST) -> list[tuple[ast.Call, str, str]]:
    """Each ``base.name(...)`` of a module, ``base`` being ``""`` for methods."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            value = node.func.value
            base = value.id if isinstance(value, ast.Name) else ""
            found.append((node, base, node.func.attr))
    return found


def violations(source: str) -> list[str]:
    """What a module does against the laws, as ``"line: call"``."""
    tree = ast.parse(source)
    found = []
    for node, base, name in calls(tree):
        keywords = {keyword.arg for keyword in node.keywords}
        on_torch = base in TORCH
        if (
            (not on_torch and name in SYNCS)
            or ((on_torch or name.endswith("_")) and name in GLOBAL_RNG)
            or (on_torch and name in FACTORIES and "device" not in keywords)
        ):
            found.append(f"{node.lineno}: {ast.unparse(node.func)}")
    return found


def imports(source: str) -> set[str]:
    """The first words of all imported modules."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def unknown_names(code: types.CodeType, known: set[str]) -> set[str]:
    """The global names that compiled code reads and neither it nor Python defines."""
    every = [code]
    for each in every:
        every += [c for c in each.co_consts if isinstance(c, types.CodeType)]
    steps = [step for each in every for step in dis.get_instructions(each)]
    read = {s.argval for s in steps if s.opname in {"LOAD_GLOBAL", "LOAD_NAME"}}
    written = {s.argval for s in steps if s.opname in {"STORE_GLOBAL", "STORE_NAME"}}
    return read - written - known - set(vars(builtins))


def module_id(path: Path) -> str:
    return str(path.relative_to(SRC))


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_a_module_neither_syncs_nor_draws_globally_nor_forgets_the_device(path):
    found = violations(path.read_text())
    # That nothing is drawn is its business.
    if module_id(path) == "testing/_conduct.py":
        found = [call for call in found if not call.endswith("get_rng_state")]
    # Their dropout is what the program that they stand for asks torch for.
    dropping = ("_attention.py", "_recurrent.py")
    if module_id(path).removeprefix("derivatives/_exactness/") in dropping:
        found = [call for call in found if not call.endswith("torch.dropout")]
    # The places at which a tensor is split are shapes, which torch itself reads.
    if module_id(path) == "derivatives/_exactness/_bags.py":
        found = [call for call in found if not call.endswith("at.tolist")]
    assert found == []


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("x.item()", 1),
        ("x.sum().tolist()", 1),
        ("torch.randn(3)", 1),
        ("x.normal_()", 1),
        ("torch.manual_seed(0)", 1),
        ("torch.zeros(3, dtype=d)", 1),
        ("torch.zeros(3, device=x.device)", 0),
        ("torch.zeros_like(x) + x.new_zeros(3)", 0),
        ("pureopt.random.normal(key, (3,))", 0),
    ],
)
def test_the_rules_see_what_they_forbid(code, number):
    assert len(violations(code)) == number


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_only_tree_imports_optree_and_nothing_optional_is_imported_at_the_top(path):
    if path.name != "_tree.py":
        assert "optree" not in imports(path.read_text())
    top = "\n".join(
        ast.unparse(node)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    )
    assert not imports(top) & {"matplotlib", "tqdm", "numpy", "scipy", "sklearn"}


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_a_module_reads_no_name_that_is_not_there(path):
    """No linter looks: dimensions in jaxtyping's strings are no names either."""
    code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
    assert not unknown_names(code, {"__name__", "__file__", "__annotations__"})


def test_a_name_that_is_not_there_is_seen():
    source = "import a\nx = 1\ndef f():\n    def g():\n        return a, x, len, lost\n"
    assert unknown_names(compile(source, "", "exec"), set()) == {"lost"}


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_a_module_has_no_assert_and_stays_readable(path):
    tree = ast.parse(path.read_text())
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    assert len(path.read_text().splitlines()) <= 400
    long = [
        f"{node.name}: {body_lines(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and body_lines(node) > 60
    ]
    assert long == []


def body_lines(node: ast.FunctionDef) -> int:
    """Lines from the first statement after the docstring to the last."""
    first = node.body[1:] if ast.get_docstring(node) else node.body
    return (node.end_lineno or 0) - first[0].lineno + 1 if first else 0


_PROBE = """
import sys, json
{imports}
print(json.dumps(sorted(sys.modules)))
"""


def loaded(statements: str) -> tuple[set[str], str]:
    """The modules that a fresh ``python -W error`` has after these imports, and stderr."""
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PROBE.format(imports=statements)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(process.stdout)), process.stderr


@pytest.mark.slow
def test_importing_is_silent_and_loads_nothing_optional():
    base, _ = loaded("import torch, optree")
    ours, stderr = loaded("import pureopt")
    # `json.loads` of the whole of stdout has already shown that nothing else was printed.
    assert stderr == ""
    heavy = {
        "matplotlib",
        "tqdm",
        "sklearn",
        "scipy",
        "torch._dynamo",
        "torch._inductor",
    }
    assert not (ours - base) & heavy
    third_party = {name.split(".")[0] for name in ours - base}
    stdlib = set(sys.stdlib_module_names)
    assert {n for n in third_party - stdlib if not n.startswith("_")} <= {
        "pureopt",
        "jaxtyping",
        "numpy",  # jaxtyping reads numpy.typing, because torch has loaded numpy
        "typing_extensions",
        "wadler_lindig",
        "torch",
    }


@pytest.mark.slow
def test_pureopt_takes_a_tenth_of_what_torch_takes_to_import():
    # Measured inside one process, torch first, so that the disk cache of torch's own
    # files is not what is compared. The best of three: other processes can only add.
    def shares() -> float:
        code = (
            "import time; a = time.perf_counter(); import torch;"
            "b = time.perf_counter(); import pureopt; c = time.perf_counter();"
            "print((c - b) / (b - a))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    assert min(shares() for _ in range(3)) <= 0.10
