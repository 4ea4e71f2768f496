"""The invariants I1 to I10, one plain function each, from collected facts to a finding."""
