"""What holds for every test."""

import asyncio

# Say that the main thread has no event loop. Otherwise pytest-asyncio, when it looks for one to restore,
# makes Python create one that nobody closes, and its warning fails whichever test the collector meets.
asyncio.set_event_loop(None)
