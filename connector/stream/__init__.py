"""How it is read: dialects, framing, back-off, handover, one connection and the endless reader."""
