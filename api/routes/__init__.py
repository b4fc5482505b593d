"""HTTP routes. They hold no rules: they validate, call and translate."""
