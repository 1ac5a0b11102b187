"""A simulated Genesys Cloud organisation: OAuth, LLM gateway and transcript WebSocket, with faults to order."""
