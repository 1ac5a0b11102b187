"""Who gets in with an identity provider's token, and to which conversations."""

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms

from server.access.issuer import IssuerKey, pick, read_key_set
from server.access.keys import make_key
from server.errors import IssuerUnavailable

from .conftest import RelayServer, until
from .provider import Provider
from .visitor import SSE, Visitor, path_of, refusal

ANN = make_key("ann")
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


@pytest.fixture(scope="module")
def provider():
    provider = Provider()
    for algorithm in ALGORITHMS:
        provider.add(algorithm, algorithm)
    provider.add("k-1")
    yield provider
    provider.close()


@pytest.fixture(scope="module")
def shared_token_relay(shared_sandbox, provider):
    relay = RelayServer(shared_sandbox.url, **provider.settings, RELAY_API_KEYS=ANN.entry, DISCONNECT_GRACE="60")
    yield relay
    relay.stop()


@pytest.fixture
def relay(shared_token_relay, sandbox):
    return shared_token_relay


@pytest.fixture
def start_provider():
    started = []

    def start(*key_ids):
        started.append(Provider())
        for key_id in key_ids:
            started[-1].add(key_id)
        return started[-1]

    yield start
    for provider in started:
        provider.close()


def status_of(relay, token):
    return Visitor(relay, token).list("c").status_code


def encoded(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def forged(token, header=None, claims=None):
    """The token with another header or other claims, under its old signature."""
    old_header, old_claims, signature = token.split(".")
    return f"{encoded(header) if header else old_header}.{encoded(claims) if claims else old_claims}.{signature}"


# Who gets in


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_token_lets_in(relay, provider, prompt, algorithm):
    assert Visitor(relay, provider.token(algorithm)).begin(prompt)


def test_a_key_lets_in_as_well(relay, prompt):
    assert Visitor(relay, ANN.key).begin(prompt)


def test_an_rsa_key_is_good_for_every_algorithm_of_its_kind_unless_it_says_one(relay, provider):
    for algorithm in ALGORITHMS[:6]:
        assert status_of(relay, provider.token("k-1", algorithm=algorithm)) == 200


def test_clocks_may_differ_by_half_a_minute(relay, provider):
    now = int(time.time())
    for claims in ({"exp": now - 20}, {"nbf": now + 20}, {"iat": now + 20}):
        assert status_of(relay, provider.token(**claims)) == 200
    for claims in ({"exp": now - 40}, {"nbf": now + 40}, {"iat": now + 40}):
        assert status_of(relay, provider.token(**claims)) == 401


def test_a_token_for_several_places_is_good_here_too(relay, provider):
    assert status_of(relay, provider.token(aud=["elsewhere", "relay"])) == 200


WRONG_CLAIMS = {
    "expired": {"exp": 1},
    "expired long ago": {"exp": -(10**30)},
    "not valid yet": {"nbf": 4_000_000_000},
    "from the future": {"iat": 4_000_000_000},
    "no number as its end": {"exp": "soon"},
    "for another place": {"aud": "elsewhere"},
    "for several other places": {"aud": ["elsewhere", "relay2"]},
    "for a beginning of our name": {"aud": "rela"},
    "from another issuer": {"iss": "https://other.test/"},
    "from the issuer without its slash": {"iss": "https://identity.test"},
    "from no one": {"sub": ""},
    "from a number": {"sub": 7},
    "from a name with a line end": {"sub": "ann\nbob"},
    "from a lone surrogate": {"sub": "\ud800"},
    "from an endless name": {"sub": "x" * 257},
    "a conversation that is no list": {"conversations": "c-1"},
    "conversations that are null": {"conversations": None},
    "conversations that are numbers": {"conversations": [1]},
    "conversations without a name": {"conversations": [""]},
}


@pytest.mark.parametrize("claims", WRONG_CLAIMS.values(), ids=WRONG_CLAIMS)
def test_claims_that_are_wrong_are_refused(relay, provider, claims):
    answer = Visitor(relay, provider.token(**claims)).ask("a question")
    assert answer.status_code == 401
    assert answer.json()["code"] == "invalid_token"


@pytest.mark.parametrize("claim", ["exp", "iss", "aud", "sub"])
def test_claims_that_are_missing_are_refused(relay, provider, claim):
    assert status_of(relay, provider.token(without=[claim])) == 401


def hmac_token(secret, key_id="k-1"):
    """What whoever knows a public key can make: a token that is signed with it as if it were a shared secret."""
    now = int(time.time())
    claims = {"iss": "https://identity.test/", "aud": "relay", "sub": "ann", "exp": now + 300}
    header = encoded({"alg": "HS256", "typ": "JWT", "kid": key_id})
    signed = f"{header}.{encoded(claims)}".encode()
    signature = get_default_algorithms()["HS256"].sign(signed, secret)
    return f"{signed.decode()}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def test_a_token_that_is_signed_with_the_public_key_is_refused(relay, provider):
    public = provider.keys["k-1"][0].public_key()
    for form in (Encoding.PEM, Encoding.DER):
        assert status_of(relay, hmac_token(public.public_bytes(form, PublicFormat.SubjectPublicKeyInfo))) == 401
    assert status_of(relay, hmac_token(provider.public("k-1")["n"].encode())) == 401
    assert status_of(relay, hmac_token(b"")) == 401


def test_a_token_without_a_signature_is_refused(relay, provider):
    token = provider.token()
    unsigned = token.rpartition(".")[0]
    for name in ("none", "None", "NONE", "", None, ["RS256"], {}):
        header = {"alg": name, "kid": "k-1"}
        assert status_of(relay, forged(token, header)) == 401
        assert status_of(relay, forged(f"{unsigned}.", header)) == 401
    assert status_of(relay, f"{unsigned}.") == 401


def test_a_token_that_was_changed_is_refused(relay, provider):
    token = provider.token(conversations=["c-1"])
    claims = jwt.decode(token, options={"verify_signature": False})
    assert status_of(relay, forged(token, claims=claims | {"sub": "root"})) == 401
    assert status_of(relay, forged(token, claims={k: v for k, v in claims.items() if k != "conversations"})) == 401
    assert status_of(relay, forged(token, header={"alg": "RS384", "kid": "k-1"})) == 401
    assert status_of(relay, token[:-2]) == 401


def test_a_key_signs_with_its_own_algorithm_alone(relay, provider):
    assert status_of(relay, provider.token("ES256", headers={"kid": "k-1"})) == 401
    assert status_of(relay, provider.token("k-1", headers={"kid": "ES256"})) == 401


def test_a_key_that_the_provider_does_not_have_is_refused(relay, provider):
    provider.add("stranger", serve=False)
    assert status_of(relay, provider.token("stranger")) == 401
    assert status_of(relay, provider.token("stranger", headers={"kid": "k-1"})) == 401
    assert status_of(relay, provider.token("stranger", headers={"kid": None})) == 401


def test_a_key_that_comes_along_in_the_token_counts_for_nothing(relay, provider):
    provider.add("smuggled", serve=False)
    headers = {"jwk": provider.public("smuggled"), "jku": "http://127.0.0.1:1/keys", "x5u": "http://127.0.0.1:1/"}
    assert status_of(relay, provider.token("smuggled", headers=headers)) == 401


NONSENSE = [
    "a.b.c",
    "..",
    "eyJ.eyJ.",
    "x" * 7000,
    "[]",
    encoded([]) + ".e30.e30",
    encoded({"alg": "RS256"}) + ".e30.e30",
]


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_is_refused(relay, nonsense):
    assert status_of(relay, nonsense) == 401


def test_what_must_be_understood_and_is_not_is_refused(relay, provider):
    """RFC 7515, 4.1.11."""
    assert status_of(relay, provider.token(headers={"crit": ["exp2"], "exp2": 1})) == 401


# Which conversations


def test_a_token_is_good_for_the_conversations_that_it_names(relay, provider, sandbox, prompt):
    visitor = Visitor(relay, provider.token(conversations=["c-1", "shop-*"]))
    for conversation in ("c-1", "shop-", "shop-77"):
        assert visitor.begin(prompt, conversation)
        assert visitor.list(conversation).ok
    until(lambda: sandbox.gateway_calls(prompt) == 3, "all were asked")
    for conversation in ("c-2", "c-11", "c-", "shop", "Shop-77"):
        for place in ("/streams", "/stream-llm"):
            answer = visitor.ask(prompt, conversation, place)
            assert answer.status_code == 403
            assert answer.json()["code"] == "forbidden"
            assert conversation not in answer.text.split()
        assert visitor.list(conversation).status_code == 403
    assert sandbox.gateway_calls(prompt) == 3, "nothing was asked"


def test_a_token_for_no_conversation_is_good_for_none(relay, provider):
    assert Visitor(relay, provider.token(conversations=[])).ask("a question", "c").status_code == 403


def test_the_default_conversation_must_be_named_as_well(start_relay, provider, prompt):
    relay = start_relay(**provider.settings, DEFAULT_CONVERSATION_ID="default")
    for conversations, status in ((["default"], 201), (["other"], 403)):
        visitor = Visitor(relay, provider.token(conversations=conversations))
        assert visitor.post("/streams", {"prompt": prompt}).status_code == status


def test_one_name_with_tokens_for_two_conversations_is_kept_apart(relay, provider, prompt):
    one, other = (Visitor(relay, provider.token(sub="shop", conversations=[name])) for name in ("shop-1", "shop-2"))
    stream = one.begin(prompt, "shop-1")
    assert one.get(path_of(stream)).ok
    for accept in (SSE, "application/json"):
        assert refusal(other.get(path_of(stream), accept)) == refusal(other.get("/streams/unknown", accept))
    assert other.delete(path_of(stream)).status_code == 404
    assert Visitor(relay, provider.token(sub="shop")).get(path_of(stream)).ok, "a token for all conversations"


def test_a_tokens_name_is_never_a_keys(relay, provider, prompt):
    stream = Visitor(relay, ANN.key).begin(prompt)
    for name in ("ann", "key:ann", "jwt:ann", "../key:ann"):
        assert Visitor(relay, provider.token(sub=name)).get(path_of(stream)).status_code == 404


# The provider's keys


def test_a_new_key_is_fetched_when_a_token_names_it_and_a_withdrawn_one_goes(start_provider, start_relay):
    provider = start_provider("old")
    relay = start_relay(**provider.settings)
    assert status_of(relay, provider.token("old")) == 200
    provider.add("new")
    provider.served.remove("old")
    until(lambda: status_of(relay, provider.token("new")) == 200, "the new key counts", patience=10)
    assert status_of(relay, provider.token("old")) == 401


def test_known_keys_stay_while_the_provider_is_down(start_provider, start_relay):
    provider = start_provider("k-1")
    relay = start_relay(**provider.settings)
    assert status_of(relay, provider.token()) == 200
    for body in (b"<html>maintenance</html>", b"[]", b'{"keys": 7}', b"x" * 300_000):
        provider.body = body
        fetches = provider.fetches
        provider.add("k-2", serve=False)
        until(lambda: status_of(relay, provider.token("k-2")) == 401 and provider.fetches > fetches, "it is asked")  # noqa: B023
        assert status_of(relay, provider.token()) == 200
    complaints = [entry for entry in relay.log if entry["message"] == "token issuer's keys cannot be fetched"]
    assert len(complaints) == 1, "an outage is told once"
    provider.close()
    assert status_of(relay, provider.token()) == 200


def test_a_provider_that_is_down_at_the_start_makes_tokens_wait_and_keys_go_on(start_provider, start_relay):
    provider = start_provider("k-1")
    provider.body = b"not yet"
    relay = start_relay(**provider.settings, RELAY_API_KEYS=ANN.entry)
    answer = Visitor(relay, provider.token()).ask("a question")
    assert answer.status_code == 503
    assert answer.json()["code"] == "issuer_unavailable"
    assert int(answer.headers["Retry-After"]) >= 1
    assert status_of(relay, ANN.key) == 200
    provider.body = None
    until(lambda: status_of(relay, provider.token()) == 200, "tokens count", patience=10)


def test_a_flood_of_unknown_keys_is_one_fetch_and_holds_no_one_else_up(start_provider, start_relay):
    provider = start_provider("k-1")
    provider.add("unknown", serve=False)
    relay = start_relay(**provider.settings)
    assert status_of(relay, provider.token()) == 200
    time.sleep(5)  # until it may fetch again
    provider.delay = 2.0
    fetches = provider.fetches
    tokens = [provider.token("unknown", headers={"kid": f"unknown-{number}"}) for number in range(40)]
    with ThreadPoolExecutor(40) as pool:
        flood = [pool.submit(status_of, relay, token) for token in tokens]
        until(lambda: provider.fetches > fetches, "the flood is there")
        began = time.monotonic()
        assert status_of(relay, provider.token()) == 200
        assert time.monotonic() - began < 1.5, "who has a known key does not wait for the fetch"
        assert {answer.result() for answer in flood} == {401}
    assert provider.fetches == fetches + 1


def test_tokens_are_in_no_log_line(start_relay, provider):
    relay = start_relay(**provider.settings, LOG_LEVEL="DEBUG")
    good, late = provider.token(), provider.token(exp=1)
    assert status_of(relay, good) == 200
    assert status_of(relay, late) == 401
    until(lambda: "ExpiredSignatureError" in relay.process.output, "at DEBUG the log says why a token was refused")
    for token in (good, late):
        for part in token.split(".")[1:]:
            assert part not in relay.process.output


# Key sets


def key_set(*keys):
    return json.dumps({"keys": keys}).encode()


def test_keys_that_are_for_something_else_are_passed_over(provider):
    good = provider.public("k-1")
    private = get_default_algorithms()["RS256"].to_jwk(provider.keys["k-1"][0], as_dict=True)
    others = [
        {**good, "use": "enc"},
        {**good, "key_ops": ["encrypt"]},
        {**good, "alg": "RSA-OAEP"},
        {**good, "kid": 7},
        {**good, "kty": "oct", "k": "c2VjcmV0"},
        {**good, "n": "!"},
        {"kty": "EC", "crv": "secp256k1"},
        {**private, "kid": "private"},
        {},
        "nonsense",
        None,
    ]
    assert [key.id for key in read_key_set(key_set(*others, good))] == ["k-1"]
    assert read_key_set(key_set()) == []


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b"\xff", b'{"keys": {}}', b"[" * 100_000])
def test_what_is_no_key_set_is_a_failure(body):
    with pytest.raises(IssuerUnavailable):
        read_key_set(body)


def test_a_token_that_names_no_key_is_checked_with_the_only_one_that_can_be():
    one, other = (IssuerKey(name, ["RS256"], None) for name in ("one", "other"))
    assert pick([one], None, "RS256") == one
    assert pick([one, other], None, "RS256") is None
    assert pick([one, other], "other", "RS256") == other
    assert pick([one, other], "other", "ES256") is None


@pytest.mark.filterwarnings("ignore:The RSA key is 1024 bits")
def test_a_short_rsa_key_is_refused(start_provider, start_relay):
    provider = start_provider()
    provider.keys["short"] = (rsa.generate_private_key(65537, 1024), "RS256")  # noqa: S505
    provider.served.append("short")
    assert status_of(start_relay(**provider.settings), provider.token("short")) == 401
