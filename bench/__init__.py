"""Measures what docs/performance.md says: `python -m bench`, and `python -m bench.soak` for an hour; `python -m
bench.scaling` what many streams need.

`servers` starts the real processes and reads what they use, `instrument` builds the gateway and the client that stand
at both ends, `measure` puts them together for one server. `comparison`, `scale`, `stores` and `transcript` are the
questions, `peers/` others' ways to relay. `tables` and `plot` show what was found, `document` keeps it. `pair` looks at
two relays on one store, with the clients of `load`; `gateway` is the sandbox with the time in each token, for these.
"""
