"""The regions of Genesys Cloud, by the domain that each has its places in. No I/O."""

from urllib.parse import urlsplit

REGIONS = (
    "mypurecloud.com",
    "mypurecloud.ie",
    "mypurecloud.de",
    "mypurecloud.jp",
    "mypurecloud.com.au",
    "apne2.pure.cloud",
    "apne3.pure.cloud",
    "aps1.pure.cloud",
    "apse1.pure.cloud",
    "cac1.pure.cloud",
    "euc2.pure.cloud",
    "euw2.pure.cloud",
    "mec1.pure.cloud",
    "mxc1.pure.cloud",
    "sae1.pure.cloud",
    "usw2.pure.cloud",
    "use2.us-gov-pure.cloud",
    "edee1.eusc-pure.cloud",
)


def region_of(address: str) -> str | None:
    """The region that a web address lies in; None for any other place, a sandbox among them."""
    try:
        host = urlsplit(address).hostname or ""
    except ValueError:
        return None
    return next((region for region in REGIONS if f".{host}".endswith(f".{region}")), None)


def api_of(address: str) -> str:
    """Where the platform API of an organisation at `address` is."""
    region = region_of(address)
    return f"https://api.{region}" if region else address


def login_of(region: str) -> str:
    return f"https://login.{region}/oauth/token"
