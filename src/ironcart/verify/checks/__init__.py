"""The invariants I1 to I12, one plain function each, from collected facts to a finding."""
