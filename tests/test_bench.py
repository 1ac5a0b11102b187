"""The benchmark: what it makes of figures, by table; and a run of each program, with the smallest loads."""

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from bench import document, measure, plot, servers, soak, tables
from bench.__main__ import PARTS
from bench.measure import Figures, Load, Target, Usage

from .conftest import ROOT

SVG = "{http://www.w3.org/2000/svg}"
NOTHING = Figures(*[0.0] * 4, rate=0, cpu=0, cpu_open=None, cpu_stream=0, memory=0, store_cpu=None, messages=None)
STEADY = soak.Sample(
    minute=1, streams=100, cpu=0.7, memory=100, descriptors=300, tokens=1, broken=0, first_p99=5, age_p99=2
)
PLACE = "above\n<!-- measured: {} -->\nold\n<!-- end: {} -->\nbelow\n"


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )


def parsed(svg):
    return ElementTree.fromstring(svg)  # noqa: S314 - it is our own


def rounds(cpu):
    """Rounds of one load, by each target's CPU in each."""
    return [
        {target: {"paced": NOTHING._replace(cpu=values[number])} for target, values in cpu.items()}
        for number in range(len(next(iter(cpu.values()))))
    ]


@pytest.mark.parametrize(
    ("cpu", "baseline", "cells"),
    [
        ({"a": [10, 20, 90], "b": [20, 20, 30]}, "a", ["20.0 (1.00 ×)", "20.0 (1.00 ×)"]),
        ({"a": [10, 20, 40], "b": [5, 40, 20]}, "a", ["20.0 (1.00 ×)", "20.0 (0.50 ×)"]),
        ({"a": [1234.5], "b": [1]}, "not measured", ["1,234.5", "1.0"]),
    ],
)
def test_a_ratio_is_taken_within_each_round_and_then_its_median(cpu, baseline, cells):
    targets = [Target(name, servers.relay, baseline=baseline) for name in cpu]
    table = tables.figures_table(targets, rounds(cpu), "paced", [tables.CPU]).split("\n")
    assert table[:2] == ["|  | CPU per token (µs) |", "| --- | --: |"]
    assert table[2:] == [f"| {name} | {cell} |" for name, cell in zip(cpu, cells, strict=True)]


def test_what_a_server_does_not_have_is_left_empty():
    column = tables.Column("CPU of the store", "store_cpu")
    assert tables.figures_table([Target("a", servers.relay)], rounds({"a": [1]}), "paced", [column]).endswith(
        "| a |  |"
    )


@pytest.mark.parametrize(
    ("marks", "cost"),
    [
        ({"open": Usage(1.0, 100), "closing": Usage(1.5, 10_100)}, 50.0),
        ({"open": Usage(1.0, 100)}, None),
        ({"open": Usage(1.0, 100), "closing": Usage(1.5, 100)}, None),
        ({}, None),
    ],
)
def test_the_cost_while_all_streams_are_open_is_that_between_the_marks(marks, cost):
    assert measure.cost_between(marks) == (cost and pytest.approx(cost))


@pytest.mark.parametrize(("value", "round_one"), [(0, 1), (0.03, 0.05), (1, 1), (2.1, 2.5), (99, 100), (4001, 5000)])
def test_an_axis_ends_at_a_round_number(value, round_one):
    assert plot.ceiling(value) == pytest.approx(round_one)


def test_a_line_goes_through_its_points_and_higher_values_stand_higher():
    drawn = parsed(plot.lines("cost & age", "streams", {"<a>": [(0, 0), (50, 5), (100, 10)], "b": []}))
    assert drawn.find(f"{SVG}title").text == "cost & age"
    (a, b) = drawn.findall(f"{SVG}polyline")
    assert a.get("points") == "70.0,270.0 280.0,155.0 490.0,40.0"
    assert b.get("points") == ""
    assert {"<a>", "b", "streams", "0", "100"} <= {text.text for text in drawn.iter(f"{SVG}text")}


def test_bars_are_as_long_as_their_values():
    drawn = parsed(plot.bars("CPU", {"relay": 50.0, "other": 100.0}))
    short, long = (float(bar.get("width")) for bar in drawn.iter(f"{SVG}rect") if bar.get("height") == str(plot.BAR))
    assert long == pytest.approx(2 * short)


def test_what_was_measured_replaces_what_was_and_nothing_else():
    text = PLACE.format("a", "a") + PLACE.format("b", "b")
    new = document.replaced(text, "a", r"new \1")
    assert new == text.replace("a -->\nold", "a -->\nnew \\1")
    assert document.replaced(new, "a", r"new \1") == new
    with pytest.raises(ValueError, match="no place for c"):
        document.replaced(text, "c", "new")


def test_the_document_has_a_place_for_each_part():
    for name in [*PARTS, "soak"]:
        assert document.replaced(document.DOCUMENT.read_text(), name, "new")


@pytest.mark.parametrize(
    ("ages", "bad"),
    [
        ({}, []),
        ({"memory": 101.9, "descriptors": 314, "age_p99": 2.4}, []),
        ({"memory": 102.1}, ["memory (MB)"]),
        ({"descriptors": 316}, ["descriptors"]),
        ({"age_p99": 2.41}, ["age of a token, p99 (ms)"]),
        ({"broken": 1}, ["broken streams"]),
    ],
)
def test_a_soak_finds_what_has_grown_at_its_end(ages, bad):
    samples = [STEADY] * 10 + [STEADY._replace(**ages)] * 2
    assert [finding.what for finding in soak.judge(samples) if not finding.is_good] == bad


def test_one_bad_minute_is_no_growth():
    samples = [STEADY] * 9 + [STEADY._replace(memory=200, age_p99=50)] * 1 + [STEADY] * 8
    assert all(finding.is_good for finding in soak.judge(samples))


@pytest.mark.parametrize(
    ("seen", "streams"),
    [
        ({"cpu": 0.7}, 100),
        ({"cpu": 0.35}, 140),
        ({"cpu": 0.6}, 117),
        ({"cpu": 1.4}, 70),
        ({"cpu": 0.0}, 140),
        ({"cpu": 0.3, "age_p99": 250}, 70),  # others have the core
        ({"cpu": 0.3, "tokens": 0}, 70),
    ],
)
def test_the_number_of_streams_is_fitted_in_careful_steps(seen, streams):
    assert soak.fitted(100, STEADY._replace(**seen)) == streams


def test_the_client_counts_and_times_every_token_and_marks_when_all_are_open():
    marks = {}
    with servers.gateway() as upstream:
        load = Load(streams=4, tokens=10, rate=40, ramp=0.05)
        seen = measure.run_load(
            upstream, upstream, load, "test", note=lambda mark, tokens: marks.update({mark: tokens})
        )
    assert (seen["complete"], seen["broken"], seen["tokens"]) == (4, 0, 40)
    assert 0 < seen["age_ms"]["p50"] <= seen["age_ms"]["p99"]
    assert 4 <= marks["open"] < marks["closing"] <= 40


@pytest.mark.parametrize(
    ("part", "names", "plots"),
    [
        ("comparison", ["nginx", "relay"], 1),
        ("scale", ["2 workers"], 3),
        ("stores", ["sqlite", "redis"], 0),
        ("transcript", ["each token", "the link takes in nothing"], 0),
    ],
)
def test_every_part_measures_and_keeps_what_it_found(tmp_path, part, names, plots):
    """But for the peers that would have to be installed, and for the pairs of relays, which wait for seconds."""
    kept = tmp_path / "performance.md"
    kept.write_text(PLACE.format(part, part))
    small = ["--rounds", "1", "--size", "0.004", "--seconds", "0.5"]
    ended = run("bench", part, *small, "--document", kept, "--only", *names)
    assert ended.returncode == 0, ended.stderr
    text = kept.read_text()
    assert "old" not in text
    assert f"-m bench {part} --rounds=1` on " in text
    assert all(re.search(rf"^(\| {name} \| [\d.,]|{name}, by)", text, re.MULTILINE) for name in names)
    files = re.findall(r"\]\((\S+\.svg)\)", text)
    assert len(files) == plots
    assert all(parsed((tmp_path / file).read_text()).find(f"{SVG}title").text for file in files)


def test_a_part_that_is_not_there_is_refused():
    ended = run("bench", "speed")
    assert ended.returncode == 2
    assert "no part: speed" in ended.stderr


def test_a_soak_ends_with_a_verdict(tmp_path):
    kept = tmp_path / "performance.md"
    kept.write_text(PLACE.format("soak", "soak"))
    ended = run("bench.soak", "--minutes", "0.06", "--no-cool-down", "--document", kept)
    assert len(re.findall(r"^minute +0\.\d\d: \d+ streams, CPU \d+%, [\d.]+ MB, \d+ desc", ended.stdout, re.M)) == 3
    verdicts = re.findall(r"\| (yes|no) \|$", kept.read_text(), re.M)
    assert len(verdicts) == 4
    assert ended.returncode == ("no" in verdicts), ended.stderr
