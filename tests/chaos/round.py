"""One round: a seed's questions and faults against a world of its own, and the judgement."""

import contextlib
import random
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ..conftest import until
from ..schedules import wait_until
from .audit import CALM, idle_holdings, leaks
from .breaker import Breaker, order_all
from .clients import Asker, Patience, Troubled
from .judge import leaks_of, of_conversation, violations
from .plan import make_plan
from .records import Turn
from .world import World

THREADS = 600  # more than clients at once
AFTER = 90.0  # seconds after the last fault for all clients to come to the end


@dataclass(slots=True)
class Report:
    seed: int
    store: str
    turns: Counter = field(default_factory=Counter)  # by their end
    faults: Counter = field(default_factory=Counter)  # by kind
    readers: int = 0
    violations: list[str] = field(default_factory=list)


def run(seed, seconds, store=None, without=()):
    """Runs one; without a store the seed chooses it. `without` are kinds of faults that do not come."""
    store = store or random.Random(seed).choice(["sqlite", "redis"])
    report = Report(seed, store)
    world = World(store)
    try:
        Round(world, make_plan(seed, seconds, without), seconds, report).run()
    except AssertionError as error:
        report.violations.append(f"the round broke off: {error}")
    finally:
        world.close()
    return report


class Round:
    def __init__(self, world, plan, seconds, report):
        self._world = world
        self._plan = plan
        self._report = report
        self._breaker = Breaker(world, random.Random(report.seed + 1))
        self._patience = Patience(seconds + AFTER)
        self._readers = ThreadPoolExecutor(THREADS)
        self._read = []  # asker, its futures of readings, began

    def run(self):
        idle = idle_holdings(self._world)
        order_all(self._world, self._plan.questions)
        begin = time.monotonic()
        talks = defaultdict(list)
        for question in self._plan.questions:
            talks[question.conversation].append(question)
        with self._readers, ThreadPoolExecutor(len(talks) + 1) as pool:
            breaking = pool.submit(self._breaker.run, self._plan.faults, begin)
            asked = [pool.submit(self._talk, talk, begin) for talk in talks.values()]
            breaking.result()
            self._world.mend()
            conversations = [future.result() for future in asked]
            self._judge(conversations)
        self._report.faults += self._breaker.counts
        self._report.faults["recycling"] = self._world.relay.process.output.count("Autorestarting worker")
        self._report.faults.update(f"gateway {q.fault['fault']}" for q in self._plan.questions if q.fault)
        self._report.violations += leaks(self._world, idle)
        secrets = self._world.secrets(question.prompt for question in self._plan.questions)
        self._report.violations += leaks_of(self._world.outputs(), secrets)

    def _talk(self, questions, begin):
        """Asks a conversation's questions, the next once the last was taken."""
        turns = []
        for question in questions:
            wait_until(begin + question.at)
            asker = Asker(self._world, self._patience, question)
            began = time.monotonic()
            try:
                asker.ask()
            except Troubled as trouble:
                self._report.violations.append(f"{question.conversation} {question.number}: {trouble}")
                continue
            opened = [asker.opened] + [None] * len(question.readers)
            readings = [
                self._readers.submit(self._follow, asker, reader, opened[number])
                for number, reader in enumerate(question.readers)
            ]
            if question.cancel_after is not None:
                self._readers.submit(self._cancel, asker, question.cancel_after)
            turns.append((asker, readings, began))
        return turns

    def _follow(self, asker, reader, opened):
        time.sleep(0 if opened else reader.late)
        return asker.read(reader, opened), time.monotonic()

    def _cancel(self, asker, after):
        time.sleep(after)
        with contextlib.suppress(Troubled):
            asker.cancel()

    def _judge(self, conversations):
        for asked in conversations:
            turns = [turn for turn in (self._settled(*one) for one in asked) if turn]
            for turn in turns:
                self._report.turns[turn.state["status"]] += 1
                self._report.readers += len(turn.readings)
                if found := violations(turn):
                    self._report.violations += [f"{turn}: {fault}" for fault in [*found, *self._logged(turn)]]
            if turns:
                name = turns[0].question.conversation
                found = of_conversation(self._world.sandbox.conversation(name), turns, self._breaker.outages())
                ids = [turn.id for turn in turns]
                self._report.violations += [f"conversation {name} of the turns {ids}: {fault}" for fault in found]

    def _logged(self, turn):
        """What the server's log says of a turn."""
        lines = (line for line in self._world.relay.log if line.get("turn") == turn.id)
        shown = ("time", "message", "status", "code", "detail")
        return ["log: " + " ".join(str(line[name]) for name in shown if name in line) for line in lines][:10]

    def _settled(self, asker, readings, began):
        """The turn, once it has ended and its text is delivered, or cannot be waited for any longer."""
        read = [future.result() for future in readings]
        ended = max(at for _, at in read)
        state = {}

        def is_settled():
            nonlocal state
            state = asker.state()
            return state["status"] != "running" and (state["transcript"] or {}).get("state") == "delivered"

        self._patience = asker._patience = Patience(CALM)
        try:
            with contextlib.suppress(AssertionError):
                until(is_settled, "delivered", CALM / 2)
        except Troubled as trouble:
            self._report.violations.append(f"turn {asker.id}: {trouble}")
            return None
        if not any(reading.is_whole for reading, _ in read):
            ended = time.monotonic()  # nobody saw when
        told = min((at for reading, at in read if reading.is_ended), default=ended)
        meanwhile = self._breaker.meanwhile(began, ended, told)
        return Turn(asker.id, asker.question, tuple(reading for reading, _ in read), state, meanwhile)
