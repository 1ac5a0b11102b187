"""What is installed: pinned to the last package, each with the hashes of its files; and no more than has a reason."""

import re
import tomllib
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .conftest import ROOT

ALL = "requirements-dev"
PAIRS = ["requirements", "sandbox/requirements", ALL]
PIN = re.compile(r"==[0-9][^ ,*]*")


def asked_for(name):
    """What a file of direct dependencies has, with its comments."""
    lines = (ROOT / f"{name}.in").read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r "))]


def pinned(name):
    """Requirements by name, with their hashes."""
    found = {}
    text = (ROOT / f"{name}.txt").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            requirement = Requirement(requirement)
            found[canonicalize_name(requirement.name)] = requirement, hashes
    return found


@pytest.mark.parametrize("name", PAIRS)
def test_every_package_is_pinned_with_hashes(name):
    packages = pinned(name)
    assert packages
    for requirement, hashes in packages.values():
        assert PIN.fullmatch(str(requirement.specifier))
        assert hashes
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in hashes)


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_asked_for_is_what_is_pinned(name):
    """`make lock` was run after the last change."""
    packages = pinned(name)
    for line in asked_for(name):
        asked = Requirement(line.partition("#")[0].strip())
        requirement, _ = packages[canonicalize_name(asked.name)]
        assert requirement.specifier == asked.specifier


@pytest.mark.parametrize("name", PAIRS)
def test_all_files_pin_the_same(name):
    everything = pinned(ALL)
    for package, (requirement, hashes) in pinned(name).items():
        assert everything[package][0].specifier == requirement.specifier
        assert everything[package][1] == hashes


@pytest.mark.parametrize("name", ["requirements", "sandbox/requirements"])
def test_each_direct_dependency_says_why_it_is_there(name):
    assert all(re.search("  # .{10}", line) for line in asked_for(name))


@pytest.mark.parametrize("name", PAIRS)
def test_no_address_says_where_packages_come_from(name):
    assert "://" not in (ROOT / f"{name}.txt").read_text()


def test_the_tests_run_with_what_is_pinned():
    for package, (requirement, _) in pinned(ALL).items():
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(version(package), prereleases=True), package


def test_a_package_that_an_app_has_already_may_stay_and_the_tested_one_fits():
    """The project asks for ranges: of all that the server runs on, and the pinned versions are in them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = {canonicalize_name(one.name): one for one in map(Requirement, project["dependencies"])}
    pins = [Requirement(line.partition("#")[0].strip()) for line in asked_for("requirements")]
    assert set(ranges) == {canonicalize_name(pin.name) for pin in pins}
    for pin in pins:
        asked = ranges[canonicalize_name(pin.name)]
        assert asked.extras == pin.extras
        assert asked.specifier.contains(next(iter(pin.specifier)).version)


def test_the_extras_are_what_is_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = pinned(ALL)
    for extra in project["optional-dependencies"].values():
        for asked in map(Requirement, extra):
            pin = next(iter(pins[canonicalize_name(asked.name)][0].specifier)).version
            assert asked.specifier.contains(pin)
