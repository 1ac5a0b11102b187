"""A simulated Genesys Cloud organisation: OAuth, LLM gateway, transcript and platform API, with faults to order."""
