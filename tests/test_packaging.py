"""pyproject.toml, constraints.txt, environment.yml, Makefile and README.md say the same."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import environments
import notebook_files

ROOT = notebook_files.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
PIN_LINES = re.findall(r"^[^#\n].*$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
PINS = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in PIN_LINES)}

# Colab has these; pip must be content with them, or a reader's torch would be replaced.
COLAB = dict(line.split("==") for line in environments.colab()) | {"python": "3.13.0"}

LESSONS = [
    "01_load_mistral_7b",
    "02_grouped_query_attention",
    "03_sliding_window_attention",
    "04_mixture_of_experts",
    "05_the_whole_model",
    "06_four_bit_numbers",
    "07_mixtral_in_four_bits",
    "08_fine_tune_your_own",
    "09_more_than_one_machine",
]


def test_every_constraint_is_one_exact_public_version():
    for line in PIN_LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line), f"{line!r} is no name==version"
    assert len(PINS) == len(PIN_LINES), "a package stands twice"
    assert PINS["torch"] == "2.13.0"


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_every_dependency_is_pinned_within_its_bounds(requirement):
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])
    assert {clause.operator for clause in requirement.specifier} == {">="}, "lower bounds only: Colab keeps what it has"


def test_all_that_an_install_brings_is_pinned_at_the_installed_version():
    """From the dependencies through theirs, as this environment has them; the extra "bench" where it is installed."""
    left_out = set() if importlib.util.find_spec("llama_cpp") else {"llama-cpp-python"}
    pending, seen = [(requirement, "") for requirement in DIRECT if requirement.name not in left_out], set()
    while pending:
        requirement, extra = pending.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        wanted = {(name, extra) for extra in ("", *requirement.extras)} - seen
        seen |= wanted
        for name, extra in wanted:
            installed = metadata.distribution(name)
            pending += [(Requirement(line), extra) for line in installed.requires or []]
            if not name.startswith(("nvidia-", "cuda-", "triton")):  # torch's CUDA build names their exact versions
                assert PINS.get(name) == Version(installed.version).public, f"{name} is {installed.version} here"
    assert len(seen) > 50  # the walk went beyond the direct dependencies


def test_colab_satisfies_the_lower_bounds():
    asked = PROJECT["dependencies"] + EXTRAS["finetune"]
    bounds = {requirement.name: requirement.specifier for requirement in map(Requirement, asked)}
    bounds["python"] = SpecifierSet(PROJECT["requires-python"])
    # The set-up cell installs the first; the second comes with torch and with huggingface_hub.
    assert bounds.keys() - COLAB.keys() == {"bitsandbytes", "filelock"}
    for name in bounds.keys() & COLAB.keys():
        assert bounds[name].contains(COLAB[name]), f"{name}{bounds[name]}: Colab has {COLAB[name]}"


def test_conda_installs_what_the_makefile_installs():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    python, pip, through_pip = environment["dependencies"]
    assert SpecifierSet(python.removeprefix("python ")) == SpecifierSet(PROJECT["requires-python"])
    assert pip == "pip"
    assert set(through_pip["pip"]) == {"-c constraints.txt", "-e .[lab,dev,finetune]"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--editable '.[lab,dev,finetune]' --constraint constraints.txt" in makefile
    assert EXTRAS.keys() == {"lab", "dev", "finetune", "bench"}


def test_only_make_bench_compiles_llama_cpp_and_the_tests_have_the_writer_of_its_files():
    assert "--editable '.[bench]' --constraint constraints.txt" in (ROOT / "Makefile").read_text(encoding="utf-8")
    (writer,) = [line for line in EXTRAS["bench"] if line.startswith("gguf")]
    assert writer in EXTRAS["dev"]
    assert [line for lines in EXTRAS.values() for line in lines if "llama" in line] == EXTRAS["bench"][1:]


def test_what_the_package_imports_is_declared():
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"] + EXTRAS["finetune"]}
    providers = metadata.packages_distributions()
    for path in sorted((ROOT / "mistral_lab").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            else:
                continue
            for module in {name.split(".")[0] for name in modules} - sys.stdlib_module_names - {"mistral_lab"}:
                names = {canonicalize_name(name) for name in providers.get(module, [module])}
                # IPython comes with ipywidgets, and a notebook has it in any case.
                assert names & (declared | {"ipython"}), f"{path.relative_to(ROOT)} imports {module}, not declared"


def test_the_wheel_holds_the_bundled_models(tmp_path):
    """Colab installs a wheel, where an editable install would find files that no wheel has."""
    source = tmp_path / "source"
    source.mkdir()
    shutil.copytree(ROOT / "mistral_lab", source / "mistral_lab", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(tmp_path), str(source)], check=True, timeout=300, capture_output=True)
    (wheel,) = tmp_path.glob("mistral_lab-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("mistral_lab/")}
    assert packed == {
        path.relative_to(source).as_posix()
        for path in (source / "mistral_lab").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "mistral_lab/bundled/tiny-mistral/model.safetensors" in packed


def test_the_public_address_stands_once_outside_the_lessons():
    address = notebook_files.repository()
    assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address)
    files = [path for path in ROOT.glob("*") if path.is_file()]
    files += [path for folder in ("mistral_lab", "tools", "tests") for path in (ROOT / folder).rglob("*.py")]
    counts = {path.name: path.read_text(encoding="utf-8", errors="replace").count(address) for path in files}
    assert {name: count for name, count in counts.items() if count} == {"pyproject.toml": 1}


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_lists_nine_lessons_and_marks_those_to_come():
    rows = {match[1]: match[0] for match in re.finditer(r"^\| .*?(\d\d_\w+).*$", readme(), re.MULTILINE)}
    assert list(rows) == LESSONS
    for name, row in rows.items():
        exists = (ROOT / "notebooks" / f"{name}.ipynb").is_file()
        assert (f"(notebooks/{name}.ipynb)" in row) == exists, row
        assert ("coming" in row) == (not exists), row


@pytest.mark.parametrize(("page", "one"), [("README.md", "docs/parameters.png"), ("CONTRIBUTING.md", "README.md")])
def test_every_link_of_a_page_leads_somewhere(page, one):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("https://")]
    assert one in links
    for link in links:
        assert (ROOT / link).exists(), f"{page} links to {link}, which is not there"


def test_the_pages_name_commands_that_make_has():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE))
        assert "test" in named
        assert named <= targets


def test_the_readme_names_every_room_in_its_tree():
    (tree,) = re.findall(r"^```text\n(.*?)^```", readme(), re.DOTALL | re.MULTILINE)
    named = re.findall(r"^ *([\w./-]+)", tree, re.MULTILINE)
    package = ROOT / "mistral_lab"
    there = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in package.iterdir()
        if not path.name.startswith((".", "__"))
    }
    listed = {line for line in named if (package / line).exists()}
    assert listed == there
    for name in named:
        assert (ROOT / name).exists() or (package / name).exists(), f"the tree names {name}, which is not there"
