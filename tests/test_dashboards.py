"""deploy/grafana.json and deploy/alerts.yaml: whole, and of metrics, labels and values that the server has."""

import json
import re
import shutil
import subprocess
from collections import defaultdict

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from .conftest import ROOT

ALERTS = ROOT / "deploy" / "alerts.yaml"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana.json").read_text())
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
EVERY = [*QUERIES, *(rule["expr"] for rule in RULES)]
ROWS = ["Turns", "Latency", "Gateway", "Followers", "Journal", "Transcript", "Process"]

FUNCTIONS = {"rate", "increase", "histogram_quantile", "absent"}
AGGREGATIONS = {"sum", "max", "count"}
WORDS = FUNCTIONS | AGGREGATIONS | {"by", "and", "or"}
SCRAPED = 'up{job="relay"}'  # Prometheus's own
TARGETS_LABELS = {"instance", "le", "job"}  # what Prometheus adds, and what each histogram has
SELECTOR = re.compile(r"(relay_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'\s*(\w+)\s*(=~|!=|=)\s*"([^"]*)"\s*')
DURATION = r"\[(?:\$__rate_interval|\d+[smhd])\]"
TOKEN = re.compile(rf"{DURATION}|[a-z_]\w*|\d+(?:\.\d+)?|[()/,]|[<>]=?|==|\s+")


@pytest.fixture(scope="module")
def known(shared_relay):
    """By sample's name its labels, with their values."""
    found = defaultdict(lambda: defaultdict(set))
    for family in text_string_to_metric_families(requests.get(f"{shared_relay.url}/metrics", timeout=10).text):
        for sample in family.samples:
            labels = found[sample.name]
            for name, value in sample.labels.items():
                labels[name].add(value)
    return found


@pytest.mark.parametrize("query", EVERY)
def test_every_query_is_of_metrics_labels_and_values_that_exist(known, query):
    selectors = SELECTOR.findall(query)
    assert selectors
    labels = set(TARGETS_LABELS)
    for metric, matchers in selectors:
        assert metric in known
        labels.update(known[metric])
        for matcher in filter(None, matchers.split(",")):
            label, _, wanted = MATCHER.fullmatch(matcher).groups()
            if wanted != "$instance":
                assert set(wanted.split("|")) <= known[metric][label]
    for by in re.findall(r"by \(([^)]*)\)", query):
        assert {label.strip() for label in by.split(",")} <= labels


@pytest.mark.parametrize("query", EVERY)
def test_every_query_is_promql(query):
    """No parser, but what typing goes wrong in: brackets, names of functions, ranges where rates want them."""
    bare = SELECTOR.sub("metric", query.replace(SCRAPED, "relay_up"))
    words = [found for found in TOKEN.findall(bare) if not found.isspace()]
    assert "".join(words) == re.sub(r"\s", "", bare), "nothing but what is known"
    depth = 0
    for word, following in zip(words, [*words[1:], ""], strict=True):
        depth += (word == "(") - (word == ")")
        assert depth >= 0
        assert word not in FUNCTIONS or following == "("
        assert word not in AGGREGATIONS or following in ("(", "by")
    assert depth == 0
    in_by = {label.strip() for by in re.findall(r"by \(([^)]*)\)", bare) for label in by.split(",")}
    assert {word for word in words if word[0].isalpha()} <= WORDS | in_by | {"metric"}
    ranges = len(re.findall(DURATION, bare))
    assert ranges == len(re.findall(rf"\b(?:rate|increase)\(metric{DURATION}\)", bare)) == bare.count("metric[")


def test_counters_are_seen_as_rates_and_quantiles_as_histograms():
    for query in EVERY:
        for metric in re.findall(r"\brelay_\w+(?:_total|_bucket|_count|_sum)\b", query):
            assert re.search(rf"(?:rate|increase)\({metric}[{{\[]", query), query
        assert query.count("histogram_quantile") == len(re.findall("_bucket", query))


def test_the_dashboard_shows_every_metric(known):
    shown = {metric for query in QUERIES for metric, _ in SELECTOR.findall(query)}
    families = {re.sub("_(bucket|count|sum)$", "", name) for name in known}
    assert families == {re.sub("_(bucket|count|sum)$", "", name) for name in shown}


def test_the_dashboard_can_be_imported():
    assert DASHBOARD["schemaVersion"] >= 38, "Grafana 10"
    assert "id" not in DASHBOARD, "it would be taken for one that is there"
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert variables["instance"]["datasource"] == source
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == ROWS
    for panel in PANELS:
        assert panel["datasource"] == source
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(target["datasource"] == source for target in panel["targets"])
    assert all('instance=~"$instance"' in query for query in QUERIES)


def test_the_panels_have_ids_and_places_of_their_own():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24


def test_every_alert_says_what_to_do():
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+m", rule.get("for", "1m"))
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].endswith(".")
        assert len(rule["annotations"]["description"]) > 80
        by = " ".join(re.findall(r"by \(([^)]*)\)", rule["expr"]))
        for label in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
            assert label in by
    assert any("for" in rule for rule in RULES)


def test_texts_name_metrics_and_settings_that_exist(known):
    settings = (ROOT / ".env.example").read_text()
    for rule in RULES:
        text = rule["annotations"]["description"]
        for metric in re.findall(r"relay_\w+", text):
            assert metric in known or f"{metric}_bucket" in known
        for setting in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", text):
            assert setting in settings


def test_the_document_has_prometheus_scrape_by_the_name_that_the_rules_have():
    assert any(SCRAPED in rule["expr"] for rule in RULES)
    assert "job_name: relay\n" in (ROOT / "docs" / "operations.md").read_text()


def promtool(*arguments):
    """Runs it where it is installed."""
    program = shutil.which("promtool")
    done = subprocess.run([program, *arguments] if program else ["true"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_rules_where_it_is_installed():
    promtool("check", "rules", str(ALERTS))


FAILED, COMPLETE = 'relay_turns_ended_total{status="failed"}', 'relay_turns_ended_total{status="complete"}'
REFUSED, BEGUN = 'relay_requests_refused_total{code="too_many_turns"}', "relay_turns_begun_total"
ONCE, NEVER, OFTEN = "0+0x12 1+0x27", "0+0x40", "0+2x40"  # a minute each
# Series and their values, the alert, and whether it fires after 20 minutes.
NIGHTS = {
    "one failed turn": ({FAILED: ONCE, COMPLETE: NEVER}, "RelayNoTurnSucceeds", False),
    "turns that all fail": ({FAILED: OFTEN, COMPLETE: NEVER}, "RelayNoTurnSucceeds", True),
    "turns some of which fail": ({FAILED: OFTEN, COMPLETE: OFTEN}, "RelayNoTurnSucceeds", False),
    "a relay that is not scraped": ({SCRAPED: NEVER, "relay_workers": "1+0x40"}, "RelayGone", True),
    "a relay that is scraped": ({SCRAPED: "1+0x40", "relay_workers": "1+0x40"}, "RelayGone", False),
    "no relay at all": ({}, "RelayGone", True),
    "most are refused": ({REFUSED: OFTEN, BEGUN: "0+1x40"}, "RelayRefusesMost", True),
    "some are refused": ({REFUSED: "0+1x40", BEGUN: OFTEN}, "RelayRefusesMost", False),
    "one failed login": ({'relay_access_token_fetches_total{result="rejected"}': ONCE}, "RelayTokenFetchFails", False),
}


@pytest.mark.parametrize(("series", "alert", "fires"), NIGHTS.values(), ids=NIGHTS)
def test_who_is_woken_by_what(tmp_path, series, alert, fires):
    rule = next(rule for rule in RULES if rule["alert"] == alert)
    count = f"count(ALERTS{{alertname={alert!r}, alertstate='firing'}})".replace("'", '"')
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": count, "eval_time": "20m", "exp_samples": [{"labels": "{}", "value": 1}] if fires else []}
        ],
    }
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [rule]}]}))
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", str(file))
