"""What the transcript costs, and what its link's troubles do to the asker: nothing."""

from . import servers
from .document import Section
from .measure import Load, Plan, Target, play_rounds
from .tables import AGE, CPU, FIRST, MEMORY, Column, figures_table

PACED = Load(200, 50, 20, 1.0)
INTERVALS = (0, 250)  # ms
OFF = "off"
TARGETS = [
    Target(OFF, lambda upstream: servers.relay(upstream, "off"), baseline=OFF),
    *(
        Target(
            f"each {interval} ms" if interval else "each token",
            lambda upstream, interval=interval: servers.relay(
                upstream, "websocket", TRANSCRIPT_INTERVAL_MS=f"{interval}"
            ),
            baseline=OFF,
            is_mirroring=True,
        )
        for interval in INTERVALS
    ),
]
TROUBLED = {  # by `links` of wire/gateway.c
    "refused": Target("every handshake is refused", TARGETS[1].start, baseline=OFF),
    "mute": Target("the link takes in nothing", TARGETS[1].start, baseline=OFF),
}
COLUMNS = [CPU, Column("messages per 1,000 tokens", "messages"), MEMORY, *FIRST, *AGE]


def measure(plan: Plan) -> Section:
    targets, load = plan.pick(TARGETS), plan.fit(PACED)
    played = play_rounds(targets, {"paced": load}, plan.rounds)
    troubled = plan.pick(TROUBLED.values())
    for links, target in TROUBLED.items():
        if target in troubled:
            more = play_rounds([target], {"paced": load}, plan.rounds, links)
            played = [first | second for first, second in zip(played, more, strict=True)]
    table = figures_table([*targets, *troubled], played, "paced", COLUMNS)
    return Section(
        "**What does the transcript cost, and what does the asker notice of a link in trouble?** By "
        f"`TRANSCRIPT_INTERVAL_MS`, each stream in a conversation of its own (paced: {load})\n\n{table}"
    )
