"""Everything a running system needs, on one machine: broker, database, sandbox, supervisor."""
