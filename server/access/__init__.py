"""Who may ask, and what belongs to whom.

caller.py    someone who was told apart from others
keys.py      API keys: made, kept as hashes, looked up
jwt.py       JSON Web Tokens of an identity provider
issuer.py    that provider's keys: fetched, kept, renewed
tickets.py   signed leave to see one stream
allowance.py how much a caller may begin
guard.py     all of them behind one door; or a door that stands open

Nothing is imported up here: the settings read `keys` in gunicorn's master process, where nothing may import sockets.
"""
