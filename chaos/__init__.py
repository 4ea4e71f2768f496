"""The chaos harness: load, seeded faults in real processes, heal, drain, verify, report.

It shares no code with what it attacks: it starts `ironcart` as a process and looks from outside.
"""
