"""The chaos suite: a small cluster under faults, judged by a checker that shares no code with it."""
