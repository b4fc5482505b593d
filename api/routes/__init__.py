"""Routes hold no rules: they check, call and translate."""
