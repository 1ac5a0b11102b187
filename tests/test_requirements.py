"""What is installed: pinned to the last package, each with the hashes of its files; and no more than has a reason."""

import re
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
