"""Measures what the README claims: `python -m bench` beside a tutorial's relay, `python -m bench.stores` by store,
`python -m bench.transcript` by what the link to the transcript does; `python -m bench.scaling` what many streams need.

`servers` starts the real processes and reads what they use, `load` asks and times in a process of its own, `measure`
puts both together for one server, `pair` for two on one store. `program` is what the programs have in common.
`gateway` is the sandbox with the time in each token; `naive` is the relay that a tutorial would write, to compare with.
"""
